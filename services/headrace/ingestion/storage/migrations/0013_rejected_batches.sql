-- A record batch that cannot be read is one entry, which accounts for the offsets up to this one; null: for its own only.
alter table rejected_samples add column next_offset bigint check (next_offset > "offset");

-- To find those that begin before where a partition is read.
create index rejected_batches on rejected_samples (cluster, topic, partition, next_offset)
    where next_offset is not null;
