-- A verification older than its backup would be of another one.
select 'backup ' || id
  from backups
 where verified_at < taken_at
 limit 100
