-- Where the payloads of rejected claim checks lie in the object store, readable also where the entry is encrypted:
-- payloads of entries that wait are kept, and those of erased ones are removed.
create table rejected_claims (
    sequence bigint primary key references rejected_samples (sequence) on delete cascade,
    path text not null,
    -- The entry was emptied, and its payload is to be removed.
    erased boolean not null default false
);

create index rejected_claims_erased on rejected_claims (sequence) where erased;
