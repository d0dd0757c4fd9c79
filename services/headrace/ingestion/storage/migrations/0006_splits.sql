-- A message headrace.api.ingestion.v1.Split as JSON; null: the owner named none.
alter table datasets add column split jsonb;

-- A message headrace.api.ingestion.v1.SplitCounts as JSON; null: the dataset had no split when it was cut.
alter table dataset_versions add column split_counts jsonb;
