-- Keeps updated_at true: the seed gives the column a default, but nothing ever moves it on,
-- and retention ages rows by it.
--
-- An update that changes nothing leaves updated_at alone, so that saving a form unchanged, or
-- an idempotent job run twice, does not make an old row young.
-- An update that sets updated_at itself is respected: restoring archived rows, importing, and
-- an application that keeps the column on its own all need their value. Setting it to the
-- value it already has cannot be told from not setting it, and is touched.
-- The time is the transaction's, as in the column's default, so that one transaction's rows agree.
--
-- `*<>` compares the rows' stored bytes: unlike `is distinct from` it also works for a
-- table with a column of a type without equality, such as json.
--
-- Down: no data is lost; values already written stay.

create function touch_updated_at() returns trigger
language plpgsql
as $$
begin
    new.updated_at := current_timestamp;
    return new;
end
$$;

comment on function touch_updated_at() is
    'Before-update trigger: stamps updated_at with the transaction''s time.';

create trigger roles_touch_updated_at before update on roles
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger institutions_touch_updated_at before update on institutions
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger faculties_touch_updated_at before update on faculties
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger departments_touch_updated_at before update on departments
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger programs_touch_updated_at before update on programs
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger courses_touch_updated_at before update on courses
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger academic_sessions_touch_updated_at before update on academic_sessions
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger enrollments_touch_updated_at before update on enrollments
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger course_enrollments_touch_updated_at before update on course_enrollments
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger innovation_projects_touch_updated_at before update on innovation_projects
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger project_milestones_touch_updated_at before update on project_milestones
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();

create trigger report_definitions_touch_updated_at before update on report_definitions
    for each row
    when (old *<> new and old.updated_at is not distinct from new.updated_at)
    execute function touch_updated_at();
