-- Whether a change of the schema lets the events of stored rows make other values.
alter table datasets add column values_changed boolean not null default false;

-- What changed before was not kept.
update datasets set values_changed = schema_version > 1;
