-- Drops the TESC schema, children before parents. ALL DATA IS LOST.
-- Without `cascade`, so that it fails rather than take along what later hands have added.

drop table audit_logs;
drop table report_executions;
drop table report_definitions;
drop table project_milestones;
drop table project_members;
drop table innovation_projects;
drop table course_enrollments;
drop table enrollments;
drop table academic_sessions;
drop table course_prerequisites;
drop table courses;
drop table programs;
drop table departments;
drop table faculties;
drop table institutions;
drop table role_permissions;
drop table user_roles;
drop table permissions;
drop table roles;
drop table users;
