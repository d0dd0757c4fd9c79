-- How many events of a dataset were rejected, ever: counted when they are stored, since nothing removes them and
-- whoever waits for an import asks twice a second. Of names that no dataset has, too: it may be applied later.
create table rejected_counts (
    dataset text primary key,
    count bigint not null
);

-- A trigger, so that instances of the release before, which still run, count too. In one order, so that two
-- batches with the same datasets wait for each other and not in a circle.
create function count_rejected() returns trigger language plpgsql as $$
begin
    insert into rejected_counts as counts (dataset, count)
    select dataset, count(*) from inserted group by dataset order by dataset
    on conflict (dataset) do update set count = counts.count + excluded.count;
    return null;
end
$$;

-- It locks out inserts until the transaction ends, so that each is counted by it or below.
create trigger count_rejected after insert on rejected_samples
    referencing new table as inserted
    for each statement execute function count_rejected();

insert into rejected_counts (dataset, count)
select dataset, count(*) from rejected_samples group by dataset;
