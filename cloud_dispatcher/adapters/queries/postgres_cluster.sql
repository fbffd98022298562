-- What several dispatchers share on PostgreSQL: who is there, and what is whose.
--
-- A member is a row of `members`. Whoever changes anything as a member locks that row against being
-- deleted (FOR KEY SHARE) until its transaction ends; to bury a member is to delete the row. So either
-- a change is there before the member is buried, or it fails (UF002) and nothing of it is.
--
-- An answer that is lost on its way must not lose a job: what becomes ours is marked (`given`) until the
-- call after it, and told again if it was not received.

-- name: members_table
CREATE TABLE members (
    id text COLLATE "C" PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    rank bigint GENERATED ALWAYS AS IDENTITY,
    lease interval NOT NULL,
    lease_until timestamptz NOT NULL,
    figures bytea
) WITH (fillfactor = 10)

-- Members that are over and may have left jobs.
-- name: graves_table
CREATE TABLE graves (
    id text COLLATE "C" PRIMARY KEY,
    since timestamptz NOT NULL
)

-- Under which names members are about to save jobs.
-- name: claims_table
CREATE TABLE claims (
    device text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    member text COLLATE "C" NOT NULL,
    PRIMARY KEY (device, id)
)

-- name: boards_table
CREATE TABLE boards (
    worker text COLLATE "C" PRIMARY KEY,
    member text COLLATE "C" NOT NULL
)

-- name: jobs_owner
CREATE INDEX jobs_owner ON jobs (owner, key) WHERE NOT told

-- name: jobs_given
CREATE INDEX jobs_given ON jobs (owner, key) WHERE given <> 0

-- name: require_member_function
CREATE FUNCTION require_member(me text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM members WHERE id = me FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of % ran out', me USING ERRCODE = 'UF002';
    END IF;
END
$$

-- Part of each commit of a member: all jobs must be its own, or nobody's yet.
-- name: note_turn_as_member_function
CREATE FUNCTION note_turn_as_member(
    me text, its_link bigint, its_turn bigint, expected bigint, touched bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM require_member(me);
    IF touched <> expected THEN
        RAISE EXCEPTION 'of % jobs % are another member''s', expected, expected - touched
            USING ERRCODE = 'UF003';
    END IF;
    PERFORM note_turn(me, its_link, its_turn);
END
$$

-- Its claims and boards are nobody's; its jobs wait for heirs.
-- name: bury_function
CREATE FUNCTION bury(over text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM members WHERE id = ANY (over);
    INSERT INTO graves (id, since) SELECT unnest(over), clock_timestamp() ON CONFLICT DO NOTHING;
    DELETE FROM claims WHERE member = ANY (over);
    DELETE FROM boards WHERE member = ANY (over);
END
$$

-- name: join_function
CREATE FUNCTION join_members(me text, its_name text, its_lease interval) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE members IN SHARE ROW EXCLUSIVE MODE;
    PERFORM bury(ARRAY(SELECT id FROM members WHERE name = its_name AND id <> me));
    INSERT INTO members (id, name, lease, lease_until)
    VALUES (me, its_name, its_lease, clock_timestamp() + its_lease)
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until;
END
$$

-- Who finds its own lease run out knows that the database was away, or its clock was set forward: then
-- all members get a new one. What is longer than a lease can be is of a clock that was set back since.
-- Who is committing at this moment is looked at again with the next beat.
-- name: beat_function
CREATE FUNCTION beat(me text, its_figures bytea) RETURNS TABLE (id text, name text, figures bytea)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    was_heard boolean;
    over text[];
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT lease_until >= clock_timestamp() INTO was_heard FROM members WHERE id = me;
    UPDATE members SET lease_until = clock_timestamp() + lease, figures = its_figures WHERE id = me;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of % ran out', me USING ERRCODE = 'UF002';
    END IF;
    UPDATE members SET lease_until = clock_timestamp() + lease
    WHERE lease_until > clock_timestamp() + lease + interval '1 s';
    over := ARRAY(
        SELECT id FROM members WHERE lease_until < clock_timestamp() ORDER BY id
        FOR UPDATE SKIP LOCKED
    );
    IF was_heard THEN
        PERFORM bury(over);
    ELSE
        UPDATE members SET lease_until = clock_timestamp() + lease WHERE id = ANY (over);
    END IF;
    RETURN QUERY SELECT id, name, figures FROM members ORDER BY rank;
END
$$

-- A claim that a crash of the server forgets costs at most a new start of one member: that a name has
-- one job, the index over the names sees to.
-- name: claim_names_function
CREATE FUNCTION claim_names(
    me text, devices text[], ids text[], released_devices text[], released_ids text[]
) RETURNS TABLE (device text, id text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM require_member(me);
    DELETE FROM claims AS c USING unnest(released_devices, released_ids) AS n (device, id)
    WHERE c.device = n.device AND c.id = n.id AND c.member = me;
    INSERT INTO claims (device, id, member)
    SELECT n.device, n.id, me FROM unnest(devices, ids) AS n (device, id) ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
    RETURN QUERY SELECT c.device, c.id FROM claims AS c
    JOIN unnest(devices, ids) AS n (device, id) ON c.device = n.device AND c.id = n.id
    WHERE c.member = me;
END
$$

-- name: join
SELECT join_members(%s, %s, make_interval(secs => %s))

-- name: leave
SELECT bury(ARRAY[%s::text])

-- name: beat
SELECT id, name, figures FROM beat(%s, %s)

-- name: claim_names
SELECT device, id FROM claim_names(%s, %b::text[], %b::text[], %b::text[], %b::text[])

-- name: require_member
SELECT require_member(%s)

-- Members share the database; who is the only dispatcher has it alone.
-- name: keep_out_loners
SELECT pg_advisory_lock_shared(5512840016374)

-- name: note_turn_as_member
SELECT note_turn_as_member(%s, %s, %s, %s, {touched})

-- name: upsert_job_of_ours
INSERT INTO jobs (
    key, device, id, status, priority, received_at_ms, finished_at_ms, attempt, worker, dead, told,
    trouble, state, submit, kept, result, owner
)
SELECT n.*, %s FROM unnest(
    %b::text[], %b::text[], %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::bigint[],
    %b::bigint[], %b::text[], %b::boolean[], %b::boolean[], %b::boolean[], %b::bytea[], %b::bytea[],
    %b::bytea[], %b::bytea[]
) AS n
ON CONFLICT (key) DO UPDATE SET
    status = excluded.status,
    priority = excluded.priority,
    received_at_ms = excluded.received_at_ms,
    finished_at_ms = excluded.finished_at_ms,
    attempt = excluded.attempt,
    worker = excluded.worker,
    dead = excluded.dead,
    told = excluded.told,
    trouble = excluded.trouble,
    state = excluded.state,
    kept = excluded.kept,
    result = excluded.result,
    owner = excluded.owner
WHERE jobs.owner = excluded.owner OR jobs.owner IS NULL

-- name: step_of_ours
UPDATE jobs AS j
SET status = n.status, attempt = n.attempt, worker = n.worker, state = n.state
FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::text[], %b::bytea[])
    AS n (key, status, attempt, worker, state)
WHERE j.key = n.key AND j.owner = %s

-- name: change_of_ours
UPDATE jobs AS j
SET finished_at_ms = n.finished_at_ms, status = n.status, attempt = n.attempt, worker = n.worker,
    dead = n.dead, told = n.told, trouble = n.trouble, state = n.state, kept = n.kept,
    result = n.result
FROM unnest(
    %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::text[], %b::boolean[], %b::boolean[],
    %b::boolean[], %b::bytea[], %b::bytea[], %b::bytea[]
) AS n (key, status, finished_at_ms, attempt, worker, dead, told, trouble, state, kept, result)
WHERE j.key = n.key AND j.owner = %s

-- name: tell_of_ours
UPDATE jobs SET told = true WHERE key = ANY (%b::text[]) AND owner = %s

-- name: owners
SELECT j.key, j.owner FROM jobs AS j JOIN members AS m ON m.id = j.owner WHERE j.key = ANY (%b::text[])

-- name: take
UPDATE jobs AS j SET owner = %s
WHERE j.key = %s AND j.told AND NOT EXISTS (
    SELECT FROM members AS m WHERE m.id = j.owner AND m.id <> %s
)

-- name: lock_taker
SELECT FROM members WHERE id = %s FOR KEY SHARE

-- What we gave away with an earlier try, whose answer was lost, is left alone.
-- name: hand_over
UPDATE jobs SET owner = %s, given = 1 WHERE key = ANY (%b::text[]) AND owner = %s

-- What was told and came through.
-- name: received
UPDATE jobs SET given = 0 WHERE key = ANY (%b::text[]) AND owner = %s

-- name: given
SELECT j.key, j.device, j.id, j.status, j.received_at_ms, j.finished_at_ms, j.attempt, j.worker,
    j.dead, j.told, j.state, j.submit, j.kept, j.result
FROM jobs AS j WHERE j.owner = %s AND j.given = %s ORDER BY j.key

-- Jobs of graves, and those from before there were members; of two who look at once each finds others.
-- A job comes with its parts, whose keys are its own, a dash and a number ("." follows upon "-").
-- name: adopt
WITH heads AS (
    SELECT j.key FROM jobs AS j LEFT JOIN graves AS g ON g.id = j.owner
    WHERE NOT j.told AND (j.owner IS NULL OR g.id IS NOT NULL) AND position('-' IN j.key) = 0
        AND (
            j.owner IS NULL OR j.worker IS NULL OR j.worker = ANY (%b::text[])
            OR g.since NOT BETWEEN clock_timestamp() - make_interval(secs => %s) AND clock_timestamp()
        )
    ORDER BY j.worker IS NULL OR NOT j.worker = ANY (%b::text[]), j.key
    LIMIT %s FOR UPDATE OF j SKIP LOCKED
)
UPDATE jobs AS j SET owner = %s, given = 2 FROM heads AS h
WHERE NOT j.told AND (j.key = h.key OR (j.key > h.key || '-' AND j.key < h.key || '.'))

-- name: clear_graves
DELETE FROM graves AS g
WHERE NOT EXISTS (SELECT FROM jobs AS j WHERE j.owner = g.id AND NOT j.told)

-- In the order in which they were named, which is the caller's preference.
-- name: claim_boards
WITH free AS (
    SELECT n.worker FROM unnest(%b::text[]) WITH ORDINALITY AS n (worker, place)
    WHERE NOT EXISTS (SELECT FROM boards AS b WHERE b.worker = n.worker AND b.member <> %s)
    ORDER BY n.place LIMIT %s
)
INSERT INTO boards AS b (worker, member) SELECT worker, %s FROM free ORDER BY worker
ON CONFLICT (worker) DO UPDATE SET member = excluded.member WHERE b.member = excluded.member
RETURNING worker

-- name: release_boards
DELETE FROM boards WHERE worker = ANY (%b::text[]) AND member = %s

-- name: owner_of_board
SELECT member FROM boards WHERE worker = %s
