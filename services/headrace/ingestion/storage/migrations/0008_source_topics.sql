-- A topic whose events are all samples of the dataset, and what their values are (SourceFormat); null: none.
alter table datasets
    add column source_topic text unique,
    add column source_format text,
    add check ((source_topic is null) = (source_format is null));
