-- What the inference service removed from its log.
alter table erasures add column prediction_count bigint not null default 0;
