-- What became of a rejected event, and of which entry's replay it is.
alter table rejected_samples
    add column state text not null default 'PENDING' check (state in ('PENDING', 'REPLAYED', 'DISCARDED')),
    add column resolve_time timestamptz,
    add column discard_reason text not null default '',
    -- A replay that was published twice is rejected once.
    add column replay_of bigint unique references rejected_samples (sequence);

-- To count those that wait, and to find them among many that do not.
create index rejected_samples_pending on rejected_samples (dataset, reject_time) where state = 'PENDING';
create index rejected_samples_pending_by_age on rejected_samples (sequence) where state = 'PENDING';

-- What rejected events lead to. All three are always there.
alter table datasets add column rejects jsonb not null
    default '{"alert_share": 0.05, "window_seconds": 600, "hold_cut": false}';

-- From when to when too large a share of a dataset's events was rejected.
create table reject_episodes (
    id text primary key,
    dataset text not null references datasets (name),
    begin_time timestamptz not null,
    end_time timestamptz
);

-- Two instances that both see an episode begin: one of them tells of it.
create unique index reject_episodes_open on reject_episodes (dataset) where end_time is null;
