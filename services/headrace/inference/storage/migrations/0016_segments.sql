-- What kind of request it was, as its caller says; '' where it named none.
ALTER TABLE predictions ADD COLUMN segment text NOT NULL DEFAULT '';
