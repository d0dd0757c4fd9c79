-- Datasets as their owners declared them. `schema` is the message headrace.api.ingestion.v1.Schema as JSON.
create table datasets (
    name text primary key,
    schema jsonb not null,
    schema_version integer not null,
    cut_rows bigint not null,
    cut_seconds double precision not null,
    create_time timestamptz not null,
    update_time timestamptz not null
);

create table dataset_versions (
    dataset text not null references datasets (name),
    version bigint not null,
    table_version bigint not null,
    schema_version integer not null,
    row_count bigint not null,
    content_hash text not null,
    -- [[cluster, topic, partition, next offset], ...]
    sources jsonb not null,
    traceparent text not null,
    create_time timestamptz not null,
    -- Two instances that cut at once both choose the next number: one of them finds it taken.
    primary key (dataset, version)
);

create table rejected_samples (
    sequence bigint generated always as identity primary key,
    cluster text not null,
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    -- No reference: an event may name a dataset that does not exist, or none.
    dataset text not null,
    event_id text not null,
    traceparent text not null,
    reason text not null,
    field text not null,
    rule text not null,
    message text not null,
    key bytea not null,
    payload bytea not null,
    -- [[name, value in base64], ...]: a header may be there twice, and its value may be any bytes.
    headers jsonb not null,
    reject_time timestamptz not null,
    -- An event that is delivered again is rejected once.
    unique (cluster, topic, partition, "offset")
);

create index rejected_samples_by_dataset on rejected_samples (dataset, sequence desc);
