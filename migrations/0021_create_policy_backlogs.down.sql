drop table policy_backlogs;
