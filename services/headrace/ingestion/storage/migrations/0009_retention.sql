-- Seconds, as {"rows": 7776000, ...}: what is not named is kept for ever.
alter table datasets add column retention jsonb not null default '{}';

-- When retention forgot a version. What stays of it says which one it was.
alter table dataset_versions add column expire_time timestamptz;
create index dataset_versions_kept on dataset_versions (dataset, version) where expire_time is null;

-- The entry that one is the replay of may be gone.
alter table rejected_samples drop constraint rejected_samples_replay_of_fkey;

-- Up to where entries of a source partition were removed. An event before that which is read once more and would be
-- rejected was rejected then: whoever stores a rejection has stored all those before it.
create table rejected_horizons (
    cluster text not null,
    topic text not null,
    partition integer not null,
    next_offset bigint not null,
    primary key (cluster, topic, partition)
);
