drop index idx_erasures_carried_out_by_run;
drop index idx_erasures_asked_by_run;
drop index idx_erasures_subject;
alter table erasures drop column carried_out_by_run, drop column asked_by_run;
