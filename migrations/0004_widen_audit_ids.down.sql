-- Narrows audit_logs.id, its sequence, and entity_id to integer. No data is lost: it refuses
-- when a row or the sequence is beyond the range, because such ids would have to be changed.

do $$
declare
    largest constant bigint := 2147483647;
    smallest constant bigint := -2147483648;
    misfits bigint;
    next_id bigint;
begin
    -- Nobody may add such a row between this check and the change below.
    lock table audit_logs in access exclusive mode;

    select count(*) into misfits
      from audit_logs
     where id not between smallest and largest
        or entity_id not between smallest and largest;
    if misfits > 0 then
        raise exception 'cannot narrow audit_logs to integer ids: % rows have an id or entity_id '
            'beyond the range of integer', misfits
            using errcode = 'numeric_value_out_of_range',
                  hint = 'Archive and remove those rows first, or stay on this version.';
    end if;

    select last_value into next_id from audit_logs_id_seq;
    if next_id > largest then
        raise exception 'cannot narrow audit_logs to integer ids: audit_logs_id_seq stands at %, '
            'beyond the range of integer', next_id
            using errcode = 'numeric_value_out_of_range',
                  hint = 'Stay on this version: ids already given out must not be used again.';
    end if;
end
$$;

alter sequence audit_logs_id_seq as integer;

alter table audit_logs
    alter column id type integer,
    alter column entity_id type integer;
