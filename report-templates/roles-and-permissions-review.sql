-- Everything that gives somebody power, and what looks wrong about it: grants, accounts that
-- are privileged without any role, and roles nobody holds. Deleted and deactivated accounts are
-- kept on purpose: a role left on one of them is what a review looks for.
with granted as (
    select rp.role_id,
           array_agg(pm.codename::text order by pm.codename) as codenames,
           count(*) as permissions
      from role_permissions rp
      join permissions pm on pm.id = rp.permission_id
     group by rp.role_id
),
holders as (
    select ur.user_id, ur.role_id, ur.created_at as granted_at
      from user_roles ur
     union all
    select u.id, null, null
      from users u
     where (u.is_staff or u.is_superuser)
       and not exists (select 1 from user_roles ur where ur.user_id = u.id)
     union all
    select null, r.id, null
      from roles r
     where not exists (select 1 from user_roles ur where ur.role_id = r.id)
),
reviewed as (
    select u.id as user_id,
           u.username,
           nullif(btrim(concat_ws(' ', u.first_name, u.last_name)), '') as full_name,
           u.email,
           case
               when u.id is null then null
               when u.deleted_at is not null then 'deleted'
               when not coalesce(u.is_active, true) then 'inactive'
               else 'active'
           end as account_state,
           coalesce(u.is_staff, false) as is_staff,
           coalesce(u.is_superuser, false) as is_superuser,
           r.id as role_id,
           r.name as role,
           h.granted_at,
           coalesce(g.permissions, 0) as permissions,
           g.codenames,
           u.last_login,
           :as_of - cast(u.last_login as date) as days_since_login
      from holders h
      left join users u on u.id = h.user_id
      left join roles r on r.id = h.role_id
      left join granted g on g.role_id = h.role_id
),
judged as (
    select v.username,
           v.full_name,
           v.email,
           v.account_state,
           v.is_staff,
           v.is_superuser,
           v.role_id,
           v.role,
           v.granted_at,
           v.permissions,
           v.codenames,
           v.last_login,
           v.days_since_login,
           array_remove(array[
               case when v.user_id is null then 'role without holders' end,
               case when v.is_superuser then 'superuser' end,
               case when v.account_state in ('deleted', 'inactive')
                    then 'role or privilege on ' || v.account_state || ' account' end,
               case when v.account_state = 'active' and v.last_login is null
                    then 'never logged in' end,
               case when v.account_state = 'active' and v.days_since_login > :dormant_days
                    then 'dormant' end,
               case when v.user_id is not null and v.role_id is null
                    then 'privileged without a role' end,
               case when v.role_id is not null and v.permissions = 0
                    then 'role without permissions' end
           ], null) as findings
      from reviewed v
)
select username as username,
       full_name as full_name,
       email as email,
       account_state as account_state,
       is_staff as is_staff,
       is_superuser as is_superuser,
       role as role,
       granted_at as role_granted_at,
       permissions as permission_count,
       codenames as permissions,
       last_login as last_login,
       days_since_login as days_since_login,
       nullif(array_to_string(findings, '; '), '') as findings
  from judged
 where (:role_names is null or role = any(:role_names))
   and (:permission_codename is null or :permission_codename = any(codenames))
   and (not coalesce(:findings_only, false) or cardinality(findings) > 0)
 order by username, role, role_id
