do $$
begin
    if exists (select from holds where released_at is null and (until is null or until > now())) then
        raise exception 'a hold is in force'
            using hint = 'Release it with `registrar hold release` first.';
    end if;
end
$$;

drop table holds;
