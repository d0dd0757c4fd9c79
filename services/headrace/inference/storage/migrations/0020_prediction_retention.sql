-- When a row came: its age by this server's clock, whatever clock it has its time from. What is there counts from now.
ALTER TABLE predictions ADD COLUMN stored timestamptz NOT NULL DEFAULT now();
ALTER TABLE feedback ADD COLUMN stored timestamptz NOT NULL DEFAULT now();
-- They come in this order: an index of a few pages, which costs an insert nothing.
CREATE INDEX predictions_by_age ON predictions USING brin (stored) WITH (autosummarize = on);
CREATE INDEX feedback_by_age ON feedback USING brin (stored) WITH (autosummarize = on);
