-- Drops the updated_at triggers and their function. No data is lost; from here on updated_at
-- moves only when the application sets it.

drop trigger report_definitions_touch_updated_at on report_definitions;
drop trigger project_milestones_touch_updated_at on project_milestones;
drop trigger innovation_projects_touch_updated_at on innovation_projects;
drop trigger course_enrollments_touch_updated_at on course_enrollments;
drop trigger enrollments_touch_updated_at on enrollments;
drop trigger academic_sessions_touch_updated_at on academic_sessions;
drop trigger courses_touch_updated_at on courses;
drop trigger programs_touch_updated_at on programs;
drop trigger departments_touch_updated_at on departments;
drop trigger faculties_touch_updated_at on faculties;
drop trigger institutions_touch_updated_at on institutions;
drop trigger roles_touch_updated_at on roles;

drop function touch_updated_at();
