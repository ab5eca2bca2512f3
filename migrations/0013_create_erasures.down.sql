-- LOSES the records of erasures and certificates. Refuses while an erasure is open: the freed
-- names of its account could not be given back.
do $$
begin
    if exists (select from erasures where status in ('waiting', 'held', 'processing')) then
        raise exception 'an erasure is open: cancel it, or let it be carried out, first';
    end if;
end
$$;

drop table certificates;
drop table erasure_tables;
drop table erasures;
