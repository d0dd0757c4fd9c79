-- Where rows have gone and others have come, a BRIN index has the ages of both for ever: in the end each hour would read
-- the whole table, and for each five thousand rows again. This one finds the oldest at once, and inserts append to it.
DROP INDEX predictions_by_age;
DROP INDEX feedback_by_age;
CREATE INDEX predictions_by_age ON predictions (stored);
CREATE INDEX feedback_by_age ON feedback (stored);
