-- Roles, permissions, and which role has which.

insert into roles (id, name, description, created_at, updated_at)
select id, name, description, created_at, created_at
  from (
    values
        (1, 'admin', 'Everything.'),
        (2, 'analyst', 'Runs reports, those that show personal data included.'),
        (3, 'registrar', E'Owns enrollments and records.\nManages reports and approves retention.'),
        (4, 'auditor', 'Reads everything, changes nothing.'),
        (5, 'lecturer', 'Records grades; sees reports without personal data.'),
        (6, 'student', ''),
        (7, 'operator', 'Keeps the service running: executions, tokens, retention.'),
        (8, 'head_of_department', null),
        (9, 'guest', 'Held by nobody, grants nothing.')
  ) as role (id, name, description)
 cross join lateral (
    select pg_temp.moment('role ', id, today - 3300) as created_at from sample_settings
  ) as at
 order by id;

insert into permissions (id, codename, name, content_type_id, created_at)
select id, codename, name, content_type_id, pg_temp.moment('permission ', id, today - 3300)
  from (
    values
        (1, 'reports.view', 'See report definitions', 1),
        (2, 'reports.run', 'Run reports', 1),
        (3, 'reports.manage', 'Create, change and delete report definitions', 1),
        (4, 'reports.personal', 'Run reports that show personal data', 1),
        (5, 'executions.view_all', 'See the executions of others', 2),
        (6, 'executions.cancel_all', 'Cancel the executions of others', 2),
        (7, 'audit.view', 'Read the audit log', 3),
        (8, 'roles.review', 'Review roles and permissions', 4),
        (9, 'tokens.manage', 'Issue and revoke API tokens', 5),
        (10, 'retention.approve', 'Approve retention runs', 6),
        (11, 'users.view', 'See users', 7),
        (12, 'users.manage', 'Create, change and close user accounts', 7),
        (13, 'courses.view', 'See courses', 8),
        (14, 'courses.manage', 'Change courses and programmes', 8),
        (15, 'enrollments.view', 'See enrollments', 9),
        (16, 'enrollments.manage', 'Enroll, suspend and withdraw students', 9),
        (17, 'grades.view', 'See grades', 10),
        (18, 'grades.record', 'Record grades', 10),
        (19, 'projects.view', 'See innovation projects', 11),
        (20, 'projects.review', 'Review innovation projects', 11),
        (21, 'legacy.export', 'Granted to nobody: "old" exports, kept for the record', null),
        (22, 'retention.view', 'See lifecycle policies, holds and runs', 6),
        (23, 'holds.manage', 'Place and release legal holds', 6),
        (24, 'retention.run', 'Run lifecycle policies and restore archived rows', 6),
        (25, 'webhooks.manage', 'Make, change and see webhooks', 2),
        (26, 'queues.manage', 'Pause queues and drain workers', 2),
        (27, 'backups.view', 'See the backups', 6),
        (28, 'backups.verify', 'Have a backup proven by a restore', 6)
  ) as permission (id, codename, name, content_type_id)
 cross join sample_settings
 order by id;

insert into role_permissions (id, role_id, permission_id, created_at)
select
    row_number() over (order by roles.id, permissions.id),
    roles.id,
    permissions.id,
    roles.created_at
  from (
    values
        ('admin', array[
            'reports.view', 'reports.run', 'reports.manage', 'reports.personal',
            'executions.view_all', 'executions.cancel_all', 'audit.view', 'roles.review',
            'tokens.manage', 'retention.approve', 'users.view', 'users.manage', 'courses.view',
            'courses.manage', 'enrollments.view', 'enrollments.manage', 'grades.view',
            'grades.record', 'projects.view', 'projects.review', 'retention.view', 'retention.run',
            'holds.manage', 'webhooks.manage',
            'queues.manage', 'backups.view', 'backups.verify'
        ]),
        ('analyst', array[
            'reports.view', 'reports.run', 'reports.personal', 'courses.view',
            'enrollments.view', 'grades.view', 'projects.view'
        ]),
        ('registrar', array[
            'reports.view', 'reports.run', 'reports.manage', 'reports.personal',
            'executions.view_all', 'retention.approve', 'users.view', 'users.manage',
            'courses.view', 'courses.manage', 'enrollments.view', 'enrollments.manage',
            'grades.view', 'projects.view', 'retention.view', 'holds.manage'
        ]),
        ('auditor', array[
            'reports.view', 'reports.run', 'executions.view_all', 'audit.view', 'roles.review',
            'users.view', 'courses.view', 'enrollments.view', 'projects.view', 'retention.view',
            'backups.view'
        ]),
        ('lecturer', array[
            'reports.view', 'reports.run', 'courses.view', 'enrollments.view', 'grades.view',
            'grades.record', 'projects.view'
        ]),
        ('student', array['courses.view', 'projects.view']),
        ('operator', array[
            'reports.view', 'executions.view_all', 'executions.cancel_all', 'tokens.manage',
            'retention.approve', 'retention.view', 'retention.run', 'holds.manage',
            'webhooks.manage',
            'queues.manage', 'backups.view', 'backups.verify'
        ]),
        ('head_of_department', array[
            'reports.view', 'reports.run', 'courses.manage', 'projects.review'
        ])
  ) as granted (role, codenames)
  join roles on roles.name = granted.role
  join permissions on permissions.codename = any (granted.codenames);
