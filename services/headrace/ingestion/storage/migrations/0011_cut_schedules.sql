-- A cron expression, in UTC; '' where versions are cut by rows or age only.
alter table datasets add column cut_schedule text not null default '';
