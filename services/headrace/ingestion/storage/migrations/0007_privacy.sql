-- The key with which an event's bytes are encrypted, key and headers among them; empty: they are as they came.
alter table rejected_samples add column sealed_by text not null default '';
