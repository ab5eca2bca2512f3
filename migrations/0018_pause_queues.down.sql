alter table workers drop column draining_at;
drop table queue_pauses;
