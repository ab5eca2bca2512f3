-- A lease outside a running attempt would keep an execution from ever being claimed again.
select 'execution ' || id
  from report_executions
 where lease_owner is not null and status not in ('processing', 'cancelling')
 limit 100
