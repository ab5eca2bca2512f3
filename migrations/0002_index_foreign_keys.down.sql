-- Drops the foreign-key indexes. No data is lost; deleting referenced rows is slow again.

drop index idx_report_executions_executed_by;
drop index idx_report_executions_report_definition_id;
drop index idx_report_definitions_created_by;
drop index idx_project_milestones_project_id;
drop index idx_innovation_projects_created_by;
drop index idx_course_enrollments_academic_session_id;
drop index idx_enrollments_program_id;
drop index idx_course_prerequisites_prerequisite_course_id;
drop index idx_departments_head_of_department_id;
drop index idx_role_permissions_permission_id;
drop index idx_user_roles_role_id;
