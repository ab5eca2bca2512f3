-- A lease of nobody is not given up when its worker dies: its execution would wait for the lease.
select 'execution ' || id
  from report_executions
 where lease_until is not null and lease_owner is null
 limit 100
