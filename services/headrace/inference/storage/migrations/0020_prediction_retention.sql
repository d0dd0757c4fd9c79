-- When a row came: its age by this server's clock, whatever clock it has its time from. What is there counts from now.
ALTER TABLE predictions ADD COLUMN stored timestamptz NOT NULL DEFAULT now();
ALTER TABLE feedback ADD COLUMN stored timestamptz NOT NULL DEFAULT now();
-- The oldest are found at once; inserts append to it.
CREATE INDEX predictions_by_age ON predictions (stored);
CREATE INDEX feedback_by_age ON feedback (stored);
