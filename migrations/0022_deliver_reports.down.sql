-- LOSES what schedules deliver where, and what became of mails and copies; copies stay in the store.
delete from outbox_deliveries where channel <> 'webhook';
drop index idx_outbox_deliveries_reports_due;
alter table outbox_deliveries
    drop constraint outbox_deliveries_webhook_target,
    drop constraint outbox_deliveries_owner_target,
    drop constraint outbox_deliveries_copy_target,
    drop column channel, drop column schedule, drop column owner_id, drop column execution_id,
    drop column attach, drop column copy_to,
    alter column webhook_id set not null;
alter table schedule_occurrences drop column delivery;
alter table schedules drop column deliver;
