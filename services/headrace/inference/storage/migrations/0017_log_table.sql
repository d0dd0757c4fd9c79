-- Whether some deployment's predictions ever became rows of a dataset: then a consumer group is there for it, also for
-- those of a deployment that has been deleted since.
CREATE TABLE log_table_named (one boolean PRIMARY KEY DEFAULT true CHECK (one));
INSERT INTO log_table_named SELECT true WHERE EXISTS (SELECT FROM deployments WHERE serving->'log'->>'dataset' <> '');
