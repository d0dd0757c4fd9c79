-- name: datasets_by_name
select name, schema, schema_version, cut_rows, cut_seconds, create_time, update_time
from datasets
where name = any($1::text[]);

-- name: list_datasets
select name, schema, schema_version, cut_rows, cut_seconds, create_time, update_time
from datasets
where name > $1
order by name
limit $2;

-- name: self_cutting_datasets
select name, schema, schema_version, cut_rows, cut_seconds, create_time, update_time
from datasets
where cut_rows > 0 or cut_seconds > 0
order by name;

-- name: insert_dataset
insert into datasets (name, schema, schema_version, cut_rows, cut_seconds, create_time, update_time)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (name) do nothing
returning name;

-- name: update_dataset
-- update_time tells whether the row is still the one that was read.
update datasets
set schema = $2, schema_version = $3, cut_rows = $4, cut_seconds = $5, update_time = $6
where name = $1 and update_time = $7
returning name;

-- name: insert_version
insert into dataset_versions
    (dataset, version, table_version, schema_version, row_count, content_hash, sources, traceparent, create_time)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (dataset, version) do nothing
returning version;

-- name: last_version
select * from dataset_versions where dataset = $1 order by version desc limit 1;

-- name: version
select * from dataset_versions where dataset = $1 and version = $2;

-- name: list_versions
select * from dataset_versions
where dataset = $1 and ($2::bigint is null or version < $2)
order by version desc
limit $3;

-- name: insert_rejected
-- Answers the places of those that were not there yet.
insert into rejected_samples
    (cluster, topic, partition, "offset", dataset, event_id, traceparent, reason, field, rule, message,
     key, payload, headers, reject_time)
select unnest($1::text[]), unnest($2::text[]), unnest($3::integer[]), unnest($4::bigint[]), unnest($5::text[]),
    unnest($6::text[]), unnest($7::text[]), unnest($8::text[]), unnest($9::text[]), unnest($10::text[]),
    unnest($11::text[]), unnest($12::bytea[]), unnest($13::bytea[]), unnest($14::text[])::jsonb, $15
on conflict (cluster, topic, partition, "offset") do nothing
returning cluster, topic, partition, "offset";

-- name: rejected_offsets
select "offset" from rejected_samples
where cluster = $1 and topic = $2 and partition = $3 and "offset" >= $4 and "offset" < $5;

-- name: rejected_count
select count(*) from rejected_samples where dataset = $1;

-- name: list_rejected
-- Sizes are summed before anything large is read. Who asks sees by the last row, which is one too many, that
-- there are more; the first one always fits.
select * from (
    select page.*, row_number() over newest as number, sum(size) over newest as total
    from (
        select *, octet_length(key) + octet_length(payload) + octet_length(headers::text) as size
        from rejected_samples
        where ($1::text is null or dataset = $1) and ($2::bigint is null or sequence < $2)
        order by sequence desc
        limit $3
    ) as page
    window newest as (order by sequence desc)
) as summed
where number <= 2 or total - size <= $4
order by sequence desc;
