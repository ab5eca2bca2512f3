-- Both days are whole days in the report's time zone. Rows without a time belong to no period
-- and only appear where both ends are left open. Secrets may have been logged with a whole row,
-- and a role that may not read users.password must not read it here: their keys are cut out of
-- old and new values. Only objects have keys to cut; a scalar would raise an error.
with entries as (
    select al.id,
           al.created_at,
           al.user_id,
           al.action,
           al.entity_type,
           al.entity_id,
           case
               when jsonb_typeof(al.old_values) = 'object' then al.old_values - secrets.keys
               else al.old_values
           end as old_values,
           case
               when jsonb_typeof(al.new_values) = 'object' then al.new_values - secrets.keys
               else al.new_values
           end as new_values,
           al.ip_address,
           al.user_agent
      from audit_logs al
     cross join (select array['password', 'token', 'token_hash', 'secret'] as keys) secrets
     where (:from_date is null or al.created_at >= cast(:from_date as timestamptz))
       and (:to_date is null or al.created_at < cast(:to_date + 1 as timestamptz))
       and (:action is null or al.action = :action)
       and (:entity_type is null or al.entity_type = :entity_type)
       and (:entity_id is null or al.entity_id = :entity_id)
)
select a.id as audit_id,
       a.created_at as logged_at,
       a.user_id as user_id,
       u.username as username,
       a.action as action,
       a.entity_type as entity_type,
       a.entity_id as entity_id,
       case
           when jsonb_typeof(a.old_values) = 'object' and jsonb_typeof(a.new_values) = 'object'
           then array(
               select coalesce(o.key, n.key)
                 from jsonb_each(a.old_values) o
                 full join jsonb_each(a.new_values) n on n.key = o.key
                where o.value is distinct from n.value
                order by 1
           )
       end as changed_keys,
       a.old_values as old_values,
       a.new_values as new_values,
       a.ip_address as ip_address,
       a.user_agent as user_agent
  from entries a
  left join users u on u.id = a.user_id
 where :username is null or u.username = :username
 order by a.created_at, a.id
