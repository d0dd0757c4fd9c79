-- name: datasets_by_name
select name, schema, schema_version, cut_rows, cut_seconds, cut_schedule, rejects, create_time, update_time,
    quality, values_changed, split, retention, source_topic, source_format, declared_version
from datasets
where name = any($1::text[]);

-- name: list_datasets
select name, schema, schema_version, cut_rows, cut_seconds, cut_schedule, rejects, create_time, update_time,
    quality, values_changed, split, retention, source_topic, source_format, declared_version
from datasets
where name > $1
order by name
limit $2;

-- name: schema_history
select version, schema, create_time from dataset_schemas where dataset = $1 order by version desc;

-- name: schemas_by_name
select dataset, version, schema
from dataset_schemas
where (dataset, version) in (select * from unnest($1::text[], $2::integer[]));

-- name: insert_schema
-- One that is there is as it was: a version never changes.
insert into dataset_schemas (dataset, version, schema, create_time) values ($1, $2, $3, $4) on conflict do nothing;

-- name: self_cutting_datasets
select name, schema, schema_version, cut_rows, cut_seconds, cut_schedule, rejects, create_time, update_time,
    quality, values_changed, split, retention, source_topic, source_format, declared_version
from datasets
where cut_rows > 0 or cut_seconds > 0 or cut_schedule <> ''
order by name;

-- name: feeds
select name, source_topic, source_format from datasets where source_topic is not null order by name;

-- name: lock_source
-- Until the transaction ends nobody else takes the topic.
select pg_advisory_xact_lock(hashtext('headrace.ingestion.source'), hashtext($1));

-- name: lock_schema
select pg_advisory_xact_lock(hashtext('headrace.ingestion.schema'), hashtext($1));

-- name: hold_schemas
-- Also of names that no dataset has yet. In one order: others hold some of them too.
select pg_advisory_xact_lock_shared(hashtext('headrace.ingestion.schema'), hash)
from (select distinct hashtext(name) as hash from unnest($1::text[]) as given (name) order by hash) as ordered;

-- name: schema_versions
select name, schema_version from datasets where name = any($1::text[]);

-- name: insert_dataset
insert into datasets
    (name, schema, schema_version, cut_rows, cut_seconds, rejects, create_time, update_time, quality,
     values_changed, split, retention, source_topic, source_format, cut_schedule, declared_version)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
on conflict do nothing
returning name;

-- name: update_dataset
-- update_time tells whether the row is still the one that was read.
update datasets
set schema = $2, schema_version = $3, cut_rows = $4, cut_seconds = $5, rejects = $6, update_time = $7,
    quality = $9, values_changed = $10, split = $11, retention = $12, source_topic = $13, source_format = $14,
    cut_schedule = $15, declared_version = $16
where name = $1 and update_time = $8
    and not exists (select from datasets as others where others.source_topic = $13 and others.name <> $1)
returning name;

-- name: hold_versions
-- Until the transaction ends nobody else cuts a version of the dataset, or says that rows of it were erased.
select pg_advisory_xact_lock(hashtext('headrace.ingestion.versions'), hashtext($1));

-- name: insert_version
insert into dataset_versions
    (dataset, version, table_version, schema_version, row_count, content_hash, sources, traceparent, create_time,
     verdict, findings, split_counts)
select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12
-- Rows that were erased meanwhile would be counted: who cuts looks again.
where not exists (select from erasures where dataset = $1 and table_version > $3)
on conflict (dataset, version) do nothing
returning version;

-- name: last_version
select v.*, (select array_agg(tag order by tag) from version_tags t where t.dataset = v.dataset and t.version = v.version)
    as tags
from dataset_versions v
where dataset = $1
order by version desc
limit 1;

-- name: version
select v.*, (select array_agg(tag order by tag) from version_tags t where t.dataset = v.dataset and t.version = v.version)
    as tags
from dataset_versions v
where dataset = $1 and version = $2;

-- name: tagged_version
select v.*, (select array_agg(tag order by tag) from version_tags t where t.dataset = v.dataset and t.version = v.version)
    as tags
from dataset_versions v
where dataset = $1 and version = (select version from version_tags where dataset = $1 and tag = $2);

-- name: pinned_versions
select v.*, (select array_agg(tag order by tag) from version_tags t where t.dataset = v.dataset and t.version = v.version)
    as tags
from dataset_versions v
where dataset = $1 and pinned
order by version;

-- name: put_tag
-- Answers the version that has the tag now; none where this one is forgotten. Where another one has the tag, $4
-- says whether it is moved.
insert into version_tags as t (dataset, tag, version)
select dataset, $2, version from dataset_versions where dataset = $1 and version = $3 and expire_time is null
on conflict (dataset, tag) do update set version = case when $4 then excluded.version else t.version end
returning version;

-- name: delete_tag
delete from version_tags where dataset = $1 and tag = $2 returning tag;

-- name: set_pinned
update dataset_versions set pinned = $3 where dataset = $1 and version = $2 and expire_time is null;

-- name: insert_profile
insert into version_profiles
    (dataset, version, position, name, type, count, null_count, min, max, mean, squares, quantiles, values,
     values_error)
select $1, $2, unnest($3::integer[]), unnest($4::text[]), unnest($5::text[]), unnest($6::bigint[]),
    unnest($7::bigint[]), unnest($8::double precision[]), unnest($9::double precision[]),
    unnest($10::double precision[]), unnest($11::double precision[]), unnest($12::bytea[]), unnest($13::text[])::jsonb,
    unnest($14::bigint[]);

-- name: profile
select p.*, v.row_count
from version_profiles p join dataset_versions v using (dataset, version)
where dataset = $1 and version = $2
order by position;

-- name: list_versions
select v.*, (select array_agg(tag order by tag) from version_tags t where t.dataset = v.dataset and t.version = v.version)
    as tags
from dataset_versions v
where dataset = $1 and ($2::bigint is null or version < $2)
order by version desc
limit $3;

-- name: table_versions
select table_version from dataset_versions
where dataset = $1 and (expire_time is null or expire_time > $2)
order by table_version;

-- name: now
select clock_timestamp();

-- name: holds_personal_data
select exists (
    select from datasets where schema -> 'attributes' @> '[{"role": "FIELD_ROLE_PERSONAL"}]'
);

-- name: insert_rejected
-- Of one cluster; answers those that were not there yet. One that says it is a replay is one if that entry was replayed and
-- has its event id, or had none of use; a copy of a replay that was rejected is there.
insert into rejected_samples
    (cluster, topic, partition, "offset", dataset, event_id, traceparent, reason, field, rule, message,
     key, payload, headers, reject_time, replay_of, sealed_by, next_offset)
select given.cluster, given.topic, given.partition, given."offset", given.dataset, given.event_id,
    given.traceparent, given.reason, given.field, given.rule, given.message,
    given.key, given.payload, given.headers::jsonb, $15, origin.sequence, given.sealed_by,
    given.next_offset
from unnest($1::text[], $2::text[], $3::integer[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[],
    $9::text[], $10::text[], $11::text[], $12::bytea[], $13::bytea[], $14::text[], $16::bigint[], $17::text[],
    $18::bigint[])
    with ordinality
    as given (cluster, topic, partition, "offset", dataset, event_id, traceparent, reason, field, rule, message,
        key, payload, headers, replay_of, sealed_by, next_offset, number)
left join rejected_horizons as horizon using (cluster, topic, partition)
left join rejected_samples as origin on origin.sequence = given.replay_of and origin.state = 'REPLAYED'
    and (origin.event_id in ('', given.event_id)
        or given.event_id = concat_ws('/', origin.cluster, origin.topic, origin.partition, origin."offset"))
where horizon.next_offset is null or given."offset" >= horizon.next_offset
order by given.number
on conflict do nothing
returning sequence, topic, partition, "offset", replay_of;

-- name: rejected_places
with span as (
    select * from unnest($1::text[], $2::text[], $3::integer[], $4::bigint[], $5::bigint[])
        as span (cluster, topic, partition, first, next)
)
select topic, partition, "offset", coalesce(next_offset, "offset" + 1) as next_offset
from rejected_samples
join span using (cluster, topic, partition)
where "offset" >= first and "offset" < next
union all
select topic, partition, "offset", next_offset
from rejected_samples
join span using (cluster, topic, partition)
where next_offset > first and "offset" < first;

-- name: rejected_at
select *, octet_length(key) + octet_length(payload) + octet_length(headers::text) as size
from rejected_samples
where cluster = $1
    and (topic, partition, "offset") in (select * from unnest($2::text[], $3::integer[], $4::bigint[]))
order by sequence;

-- name: rejected_count
select coalesce(max(count), 0) from rejected_counts where dataset = $1;

-- name: list_rejected
-- Sizes are summed before anything large is read. Who asks sees by the last row, which is one too many, that
-- there are more; the first one always fits.
select * from (
    select page.*, row_number() over newest as number, sum(size) over newest as total
    from (
        select *, octet_length(key) + octet_length(payload) + octet_length(headers::text) as size
        from rejected_samples
        where ($1::text is null or dataset = $1) and ($2::text is null or reason = $2)
            and ($3::text is null or state = $3) and ($4::bigint is null or sequence < $4)
        order by sequence desc
        limit $5
    ) as page
    window newest as (order by sequence desc)
) as summed
where number <= 2 or total - size <= $6
order by sequence desc;

-- name: rejected
select *, octet_length(key) + octet_length(payload) + octet_length(headers::text) as size
from rejected_samples
where sequence = $1;

-- name: last_rejected
select coalesce(max(sequence), 0) from rejected_samples;

-- name: rejected_sizes
select sequence, octet_length(key) + octet_length(payload) + octet_length(headers::text) as size
from rejected_samples
where sequence = any($1::bigint[])
order by sequence;

-- name: pending_sizes
select sequence, octet_length(key) + octet_length(payload) + octet_length(headers::text) as size
from rejected_samples
where state = 'PENDING' and ($1::text is null or dataset = $1) and ($2::text is null or reason = $2)
    and sequence > $3 and sequence <= $4 and ($6 or next_offset is null)
order by sequence
limit $5;

-- name: lock_pending
select * from rejected_samples
where sequence = any($1::bigint[]) and state = 'PENDING'
order by sequence
for update;

-- name: resolve_rejected
update rejected_samples
set state = $2, resolve_time = $3, discard_reason = $4
where sequence in (
    -- In one order, so that two that resolve the same entries wait for each other and not in a circle.
    select sequence from rejected_samples
    where sequence = any($1::bigint[]) and state = 'PENDING'
    order by sequence
    for update
)
returning sequence;

-- name: resolutions
select sequence, state, resolve_time from rejected_samples where sequence = any($1::bigint[]);

-- name: pending_count
select count(*) from (
    select from rejected_samples
    where dataset = $1 and state = 'PENDING' and reject_time > $2
    limit $3
) as counted;

-- name: pending_counts
select datasets.*, counted.rejected, open.id as episode, open.begin_time
from datasets
left join reject_episodes as open on open.dataset = datasets.name and open.end_time is null
cross join lateral (
    select count(*) as rejected
    from rejected_samples
    where dataset = datasets.name and state = 'PENDING' and reject_time <= $1
        and reject_time > $1 - make_interval(secs => (datasets.rejects ->> 'window_seconds')::double precision)
) as counted
where counted.rejected > 0
    or open.id is not null
    or (datasets.rejects -> 'hold_cut')::boolean and exists (
        select from rejected_samples where dataset = datasets.name and state = 'PENDING'
    )
order by datasets.name;

-- name: open_episode
select id, dataset, begin_time from reject_episodes where dataset = $1 and end_time is null;

-- name: begin_episode
insert into reject_episodes (id, dataset, begin_time)
values ($1, $2, $3)
on conflict do nothing
returning id;

-- name: end_episode
update reject_episodes set end_time = $2 where id = $1 and end_time is null returning id;

-- name: insert_erasure
insert into erasures
    (id, dataset, subject, sealed_by, create_time, state, begin_version, table_version, row_count, rejected_count,
     versions, end_time, problem, prediction_count)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14);

-- name: update_erasure
update erasures
set subject = $2, sealed_by = $3, state = $4, begin_version = $5, table_version = $6, row_count = $7,
    rejected_count = $8, versions = $9, end_time = $10, problem = $11, prediction_count = $12
where id = $1;

-- name: note_problem
update erasures set problem = $2 where id = $1 and state <> 'DONE';

-- name: erasure
select * from erasures where id = $1;

-- name: open_erasures
select * from erasures where state <> 'DONE' order by create_time;

-- name: list_erasures
select * from erasures where dataset = $1 order by create_time desc limit $2;

-- name: erasable_rejected
-- Those of the dataset, and of none, whose producer may have meant it.
select * from rejected_samples
where sequence > $2 and (octet_length(key) + octet_length(payload) > 0 or headers <> '[]')
    and (dataset = $1 or not exists (select from datasets where name = rejected_samples.dataset))
order by sequence
limit $3;

-- name: erase_rejected
-- The entry stays: by its place the event is known to be rejected. What a producer wrote goes.
update rejected_samples
set key = '', payload = '', headers = '[]', event_id = '', traceparent = '', field = '', message = 'erased',
    sealed_by = '',
    state = case when state = 'PENDING' then 'DISCARDED' else state end,
    resolve_time = coalesce(resolve_time, $2),
    discard_reason = case when state = 'PENDING' then 'erased' else discard_reason end
where sequence = any($1::bigint[]);

-- name: update_erased
update dataset_versions set erased_rows = $3, split_counts = $4 where dataset = $1 and version = $2;

-- name: delete_profile
delete from version_profiles where dataset = $1 and version = $2;

-- name: retaining_datasets
select name, schema, schema_version, cut_rows, cut_seconds, cut_schedule, rejects, create_time, update_time,
    quality, values_changed, split, retention, source_topic, source_format, declared_version
from datasets
where retention <> '{}'
order by name;

-- name: rejected_page
-- The end of the next so many of a dataset's entries.
select max(sequence) as last, max(reject_time) as newest
from (
    select sequence, reject_time from rejected_samples
    where dataset = $1 and sequence > $2
    order by sequence
    limit $3
) as page;

-- name: expire_rejected
-- Of a dataset's entries, those up to $3 that were resolved, or else rejected, before $4. Those that wait stay where
-- they may hold back a cut: they are younger than the last version. Answers how many went, by state.
with hold as (
    select coalesce((select max(create_time) from dataset_versions where dataset = $1), create_time) as since
    from datasets
    where name = $1 and (rejects -> 'hold_cut')::boolean
), old as (
    select sequence from rejected_samples
    where dataset = $1 and sequence > $2 and sequence <= $3
        and coalesce(resolve_time, reject_time) < $4
        and not (state = 'PENDING' and reject_time > coalesce((select since from hold), 'infinity'))
    order by sequence
    for update
), removed as (
    delete from rejected_samples where sequence in (select sequence from old)
    returning cluster, topic, partition, coalesce(next_offset, "offset" + 1) as next_offset, state
), moved as (
    insert into rejected_horizons as horizon (cluster, topic, partition, next_offset)
    select cluster, topic, partition, max(next_offset) from removed group by 1, 2, 3 order by 1, 2, 3
    on conflict (cluster, topic, partition)
    do update set next_offset = greatest(horizon.next_offset, excluded.next_offset)
)
select state, count(*) as count from removed group by state;

-- name: expire_versions
-- The oldest so many of those that were cut before $2, and that nobody named or pinned; never the newest.
update dataset_versions
set expire_time = $3, findings = '[]', split_counts = null, sources = '[]', traceparent = ''
where dataset = $1 and version in (
    select version from dataset_versions as v
    where dataset = $1 and expire_time is null and create_time < $2 and not pinned
        and not exists (select from version_tags as t where t.dataset = v.dataset and t.version = v.version)
        and version < (select max(version) from dataset_versions where dataset = $1)
    order by version
    limit $4
)
returning version;

-- name: delete_profiles
delete from version_profiles where dataset = $1 and version = any($2::bigint[]);

-- name: keep_claims
insert into rejected_claims (sequence, path)
select * from unnest($1::bigint[], $2::text[]);

-- name: claims_of
select sequence, path from rejected_claims where sequence = any($1::bigint[]) and not erased;

-- name: claims_in_use
-- A replay may be read from the topic for as long as any event: from when the entry was resolved.
select distinct path from rejected_claims join rejected_samples using (sequence)
where not erased and (state = 'PENDING' or resolve_time >= $1);

-- name: mark_claims_erased
update rejected_claims set erased = true where sequence = any($1::bigint[]);

-- name: erased_claims
select sequence, path from rejected_claims where erased;

-- name: forget_claims
delete from rejected_claims where sequence = any($1::bigint[]);
