-- Checks the two settings and the database, and makes what the other files share: temporary
-- functions and tables, which 90_finish.sql and the end of the transaction remove again.
--
--   sample.students   how many students, 100 to 999999
--   sample.today      the date that "current" and "overdue" are relative to

-- One day, one meaning, whatever the session or the server is set to.
set local timezone = 'Africa/Harare';
set local datestyle = 'ISO, YMD';
set local intervalstyle = 'postgres';
-- Each statement runs once: compiling it costs more than it saves.
set local jit = off;
-- The largest sort is that of the course results; in memory it takes half the time.
set local work_mem = '64MB';

create temp table sample_settings on commit drop as
select
    current_setting('sample.students')::integer as students,
    current_setting('sample.today')::date as today;

do $$
declare
    chosen sample_settings;
begin
    select * into chosen from sample_settings;
    if chosen.students is null or chosen.students not between 100 and 999999 then
        raise exception 'sample.students must be between 100 and 999999, is %', chosen.students;
    end if;
    if chosen.today is null or chosen.today not between '2000-01-01' and '2100-01-01' then
        raise exception 'sample.today must be between 2000-01-01 and 2100-01-01, is %',
            chosen.today;
    end if;
    if current_setting('server_encoding') <> 'UTF8' then
        raise exception 'the sample data needs a UTF8 database, this one is %',
            current_setting('server_encoding');
    end if;
    if exists (select from users) or exists (select from roles)
        or exists (select from institutions) or exists (select from academic_sessions)
    then
        raise exception 'the sample data needs empty tables: it writes its own ids';
    end if;
end
$$;

-- A number from 0 to choices - 1 that depends on nothing but its arguments. `topic` keeps the
-- picks made for one key independent of each other. All variety in this data comes from here.
create function pg_temp.pick(topic text, key bigint, choices integer) returns integer
language sql immutable parallel safe
as $$
    select ((hashtextextended(topic || key::text, 42) & 9223372036854775807) % choices)::integer
$$;

-- True for `per_mille` of 1,000 keys.
create function pg_temp.chance(topic text, key bigint, per_mille integer) returns boolean
language sql immutable parallel safe
as $$
    select pg_temp.pick(topic, key, 1000) < per_mille
$$;

-- An instant of the given day between 07:00 and 18:00 in Harare, to the microsecond.
create function pg_temp.moment(topic text, key bigint, day date) returns timestamptz
language sql immutable parallel safe
as $$
    select (
        day::timestamp + interval '7 hours'
        + interval '1 second' * pg_temp.pick(topic || ' s ', key, 39600)
        + interval '1 microsecond' * pg_temp.pick(topic || ' us ', key, 1000000)
    ) at time zone 'Africa/Harare'
$$;

create function pg_temp.given_name(key bigint, gender text) returns text
language sql immutable parallel safe
as $$
    select case when gender = 'male' then
        (array[
            'Tendai', 'Farai', 'Tatenda', 'Simba', 'Kudzai', 'Takunda', 'Munashe', 'Blessing',
            'Sipho', 'Themba', 'Mandla', 'Bongani', 'Nkosana', 'Lungelo', 'Tapiwa', 'Brighton',
            'Givemore', 'Learnmore', 'Innocent', 'Prince', 'Emmanuel', 'João', 'José', 'Ahmed',
            'Pedro', 'Jean-Luc', 'Obert', 'Wellington', 'Tawanda', 'Anesu'
        ])[1 + pg_temp.pick('given ', key, 30)]
    else
        (array[
            'Rudo', 'Chipo', 'Tsitsi', 'Nyasha', 'Ruvimbo', 'Tariro', 'Rutendo', 'Vimbai',
            'Nokuthula', 'Thandiwe', 'Sibongile', 'Nomsa', 'Zanele', 'Busisiwe', 'Memory',
            'Precious', 'Beauty', 'Privilege', 'Loveness', 'Fadzai', 'Ropafadzo', 'Conceição',
            'Amina', 'Fatima', 'Grace', 'Mary-Anne', 'Chiedza', 'Tanaka', 'Makanaka', 'Anotida'
        ])[1 + pg_temp.pick('given ', key, 30)]
    end
$$;

create function pg_temp.family_name(key bigint) returns text
language sql immutable parallel safe
as $$
    select (array[
        'Moyo', 'Ncube', 'Sibanda', 'Dube', 'Ndlovu', 'Mpofu', 'Nkomo', 'Khumalo', 'Nyathi',
        'Tshuma', 'Chikwanha', 'Mutasa', 'Chideme', 'Makoni', 'Mukanya', 'Shumba', 'Gumbo',
        'Hove', 'Zhou', 'Marufu', 'Chirwa', 'Banda', 'Phiri', 'Mwale', 'Zulu', 'Muzenda',
        'Mushonga', 'Chitando', 'Gwatidzo', 'Madziva', 'Mapfumo', 'Masuku', 'Matema', 'Mlambo',
        'Mudzuri', 'Nhamo', 'Nyamande', 'Rusike', 'Samkange', 'Takawira', 'Zvobgo', 'Chigumba',
        'Chinyoka', 'Dhliwayo', 'Garwe', 'Kanengoni', 'Magaisa', 'Mahlangu', 'van der Merwe',
        'da Silva', 'O''Connor', 'Smith-Nyoni', 'Patel', 'Mangwende', 'Marechera', 'Vera',
        'Dangarembga', 'Chikomo', 'Mhlanga', 'Bhebhe'
    ])[1 + pg_temp.pick('family ', key, 60)]
$$;

create function pg_temp.city(key bigint) returns text
language sql immutable parallel safe
as $$
    select (array[
        'Harare', 'Bulawayo', 'Mutare', 'Gweru', 'Masvingo', 'Chinhoyi', 'Bindura', 'Hwange',
        'Kwekwe', 'Kadoma', 'Marondera', 'Rusape', 'Victoria Falls', 'Beitbridge', 'Chitungwiza',
        'Gwanda', 'Zvishavane', 'Kariba', 'Lusaka', 'Beira'
    ])[1 + pg_temp.pick('city ', key, 20)]
$$;

create function pg_temp.phone_number(key bigint) returns text
language sql immutable parallel safe
as $$
    select case
        when pg_temp.chance('phone missing ', key, 100) then null
        when pg_temp.chance('phone empty ', key, 40) then ''
        -- A leading zero and a leading plus: text, however much it looks like a number.
        when pg_temp.chance('phone local ', key, 200)
            then '077' || lpad(pg_temp.pick('phone ', key, 10000000)::text, 7, '0')
        else '+263 77 ' || lpad(pg_temp.pick('phone a ', key, 1000)::text, 3, '0')
            || ' ' || lpad(pg_temp.pick('phone b ', key, 10000)::text, 4, '0')
    end
$$;

create function pg_temp.address(key bigint, city text) returns text
language sql immutable parallel safe
as $$
    select case
        when pg_temp.chance('address missing ', key, 80) then null
        when pg_temp.chance('address empty ', key, 30) then ''
        else (1 + pg_temp.pick('house ', key, 400))::text || ' ' || (array[
            'Samora Machel Avenue', 'Robert Mugabe Way', 'Josiah Tongogara Street',
            'Nelson Mandela Avenue', 'Leopold Takawira Street', 'Fife Street', 'Second Street',
            'Jason Moyo Avenue', 'Herbert Chitepo Street', 'Rua da Independência'
        ])[1 + pg_temp.pick('street ', key, 10)]
        || case
            when pg_temp.chance('address lines ', key, 350)
                then E'\nFlat ' || (1 + pg_temp.pick('flat ', key, 30))::text || E'\n' || city
            else ', ' || city
        end
    end
$$;

-- Django's formats: about a third "unusable", the others a hash that no password has.
create function pg_temp.password(key bigint) returns text
language sql immutable parallel safe
as $$
    select case
        when pg_temp.chance('password unusable ', key, 330)
            then '!' || left(md5('unusable ' || key::text) || md5(key::text), 40)
        else 'pbkdf2_sha256$600000$' || left(md5('salt ' || key::text), 22) || '$'
            || encode(sha256(convert_to('hash ' || key::text, 'UTF8')), 'base64')
    end
$$;

-- Names that break naive exports. Student n up to 33 has row n; one in 25 of the others has
-- one of them too, so that they turn up all over a large result and not at its head alone.
create temp table sample_odd_names (
    no integer primary key,
    first_name text,
    last_name text
) on commit drop;

insert into sample_odd_names (no, first_name, last_name)
values
    (1, 'Anna, Maria', 'Moyo, Jr.'),
    (2, 'Tendai "TK"', 'Ncube "the elder"'),
    (3, 'N''Golo', 'O''Brien-D''Souza'),
    (4, 'Line', E'Broken\nName'),
    (5, '小明', '王'),
    (6, 'محمد', 'الأحمد'),
    (7, 'Анастасия', 'Щербакова'),
    (8, 'ገብረመድህን', 'ተስፋዬ'),
    (9, 'Zoë 👩🏽‍🎓', '🦁 Shumba'),
    (10, '=1+1', '=HYPERLINK("http://example.invalid","x")'),
    (11, '+263', '+SUM(A1:A9)'),
    (12, '-1', '-2+3+cmd|'' /C calc''!A0'),
    (13, '@SUM(1)', '@import'),
    (14, E'\tTab', E'Tabbed\t'),
    (15, E'\rReturn', E'Returned\r'),
    (16, null, null),
    (17, '', ''),
    -- As wide as the columns allow, in characters and, with four bytes each, in bytes.
    (18, repeat('W', 30), repeat('𠮷', 150)),
    (19, '007', '1e10'),
    (20, '  padded  ', ' Ngwenya '),
    (21, '\N', '\.'),
    (22, 'NULL', 'null'),
    (23, 'semi;colon', 'pipe|back\slash'),
    -- Legal in PostgreSQL, illegal in XML and so in a spreadsheet.
    (24, E'control\x01', E'vertical\x0btab\uFFFE'),
    -- A byte order mark, a combining accent, a right-to-left override.
    (25, E'\uFEFFBom', E'Jose\u0301 \u202Eesrever'),
    (26, '<b>Bold</b>', '&amp; <script>alert(1)</script>'),
    (27, '100%', '%s %d {} ${x}'),
    (28, '1/2', '2024-02-30'),
    (29, 'TRUE', 'false'),
    (30, '''', '"'),
    (31, '𝕬𝖓𝖓', '𠮷野'),
    -- Text that looks like a spreadsheet's own escape for a character.
    (32, '_x0041_', '_x000D_'),
    (33, E'C:\\temp', E'tail\\');
