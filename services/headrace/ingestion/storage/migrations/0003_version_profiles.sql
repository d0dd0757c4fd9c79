alter table dataset_versions
    -- Kept whatever retention says.
    add column pinned boolean not null default false,
    -- 1 pass, 2 warn, 3 block; null: cut before versions were judged.
    add column verdict smallint check (verdict between 1 and 3),
    -- Messages headrace.api.ingestion.v1.QualityFinding as JSON.
    add column findings jsonb not null default '[]';

-- Messages headrace.api.ingestion.v1.QualityRule as JSON.
alter table datasets add column quality jsonb not null default '[]';

create table version_tags (
    dataset text not null,
    tag text not null,
    version bigint not null,
    primary key (dataset, tag),
    foreign key (dataset, version) references dataset_versions (dataset, version)
);

create index version_tags_by_version on version_tags (dataset, version);

-- What the rows of a version look like, by field; a version has all of its fields, or none where it was cut before
-- profiles were made.
create table version_profiles (
    dataset text not null,
    version bigint not null,
    position integer not null,
    name text not null,
    type text not null,
    count bigint not null,
    null_count bigint not null,
    -- Of numbers. Doubles as they are: a sum of squares may be infinite.
    min double precision,
    max double precision,
    mean double precision,
    squares double precision,
    -- A serialized sketch of Apache DataSketches, KLL of doubles.
    quantiles bytea,
    -- Counts by value, which is a JSON text, and by how much they may be too low.
    values jsonb,
    values_error bigint,
    primary key (dataset, version, position),
    foreign key (dataset, version) references dataset_versions (dataset, version)
);
