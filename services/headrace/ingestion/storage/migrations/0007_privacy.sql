-- The key with which an event's bytes are encrypted, key and headers among them; empty: they are as they came.
alter table rejected_samples add column sealed_by text not null default '';

-- Rows of a version that were erased; row_count and content_hash are as it was cut.
alter table dataset_versions add column erased_rows bigint not null default 0;

create table erasures (
    id text primary key,
    dataset text not null references datasets (name),
    -- Whom it is about, encrypted where the service has a key; nothing once it is done.
    subject bytea not null,
    sealed_by text not null,
    create_time timestamptz not null,
    state text not null check (state in ('REQUESTED', 'REWRITTEN', 'DONE')),
    begin_version bigint,
    -- No dataset version is cut from an earlier version of the table.
    table_version bigint,
    row_count bigint not null,
    rejected_count bigint not null,
    versions bigint[] not null,
    end_time timestamptz,
    problem text not null
);

create index erasures_by_dataset on erasures (dataset, create_time);
create index erasures_open on erasures (create_time) where state <> 'DONE';
