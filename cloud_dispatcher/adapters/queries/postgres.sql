-- Every statement the job store runs on PostgreSQL. One statement a name.
--
-- The jobs of a turn travel as arrays, one for each column: a statement serves any number of them. The
-- changes of a turn are the parts of ONE statement (`WITH change AS (...), ... SELECT note_turn(...)`),
-- hence one transaction and one round trip, however large it is.
--
-- A job is one row. Texts beyond 2 kB lie outside of it (TOAST), and a step that does not touch them
-- does not copy them; what is shorter travels with its row, which is cheaper than tables of its own.

-- name: migrations_table
CREATE TABLE IF NOT EXISTS migrations (
    name text COLLATE "C" PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- name: has_migrations
SELECT to_regclass('migrations') IS NOT NULL

-- name: migrations
SELECT name FROM migrations

-- name: note_migration
INSERT INTO migrations (name) VALUES (%s)

-- Two dispatchers that start at once: the second one waits, and finds nothing left to do.
-- name: lock_migrations
SELECT pg_advisory_xact_lock(5512840016373)

-- name: may_make
SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)

-- name: may_write
SELECT bool_and(has_table_privilege(name, may))
FROM unnest(ARRAY['jobs', 'spending', 'cache', 'writers']) AS name,
    unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS may

-- name: server
SELECT split_part(current_setting('server_version'), ' ', 1), current_setting('fsync')::boolean

-- Free space in each page lets a step write the new row beside the old one and leave the indexes
-- alone: half of it (measured beside 70 and 100 %: the least log, and no more disk, for the space of
-- dead rows is used again). Rows die quickly, so they are cleared away early.
-- `owner` and `given` are for several dispatchers, see postgres_cluster.sql.
-- name: jobs_table
CREATE TABLE jobs (
    key text COLLATE "C" PRIMARY KEY,
    device text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    status text NOT NULL,
    priority bigint NOT NULL,
    received_at_ms bigint NOT NULL,
    finished_at_ms bigint,
    attempt bigint NOT NULL,
    worker text,
    dead boolean NOT NULL,
    told boolean NOT NULL,
    trouble boolean NOT NULL,
    state bytea NOT NULL,
    submit bytea NOT NULL,
    kept bytea,
    result bytea,
    owner text COLLATE "C",
    given smallint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05)

-- name: jobs_device_id
CREATE UNIQUE INDEX jobs_device_id ON jobs (device, id)

-- Open jobs and the outbox: a job without a result was not told either.
-- name: jobs_untold
CREATE INDEX jobs_untold ON jobs (key) WHERE NOT told

-- Dead letters stay longer than other jobs: pruning must not walk over them every time.
-- name: jobs_kept
CREATE INDEX jobs_kept ON jobs (dead, finished_at_ms) WHERE told

-- The rare outcomes, which people look for; the common ones are found by walking the keys.
-- name: jobs_trouble
CREATE INDEX jobs_trouble ON jobs (key) WHERE trouble

-- Who commits: one row for each open store. `link` counts its connections, `turn` its commits.
-- name: writers_table
CREATE TABLE writers (
    id text COLLATE "C" PRIMARY KEY,
    link bigint NOT NULL,
    turn bigint NOT NULL,
    seen_at timestamptz NOT NULL
) WITH (fillfactor = 10)

-- Part of each commit. What an earlier connection of the same store still had under way fails here, so
-- a commit that is tried again is never made twice.
-- name: note_turn_function
CREATE FUNCTION note_turn(writer text, its_link bigint, its_turn bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE writers SET turn = its_turn, seen_at = now() WHERE id = writer AND link = its_link;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'a later connection of the same store took over' USING ERRCODE = 'UF001';
    END IF;
END
$$

-- name: take_up
INSERT INTO writers (id, link, turn, seen_at) VALUES (%s, 1, 0, now())
ON CONFLICT (id) DO UPDATE SET link = writers.link + 1, seen_at = now()
RETURNING link, turn

-- Waits for what an earlier connection has under way, and says which commit was the last that landed. No
-- row: another dispatcher was the only one in between.
-- name: take_up_again
UPDATE writers SET link = link + 1, seen_at = now() WHERE id = %s RETURNING link, turn

-- name: put_down_others
DELETE FROM writers WHERE id <> %s

-- name: put_down
DELETE FROM writers WHERE id = %s

-- name: forget_writers
DELETE FROM writers AS w WHERE seen_at < now() - interval '30 days'
    AND NOT EXISTS (SELECT FROM members AS m WHERE m.id = w.id)

-- After `WITH` and the changes of a turn: see `one_statement`.
-- name: note_turn
SELECT note_turn(%s, %s, %s)

-- Who is the only dispatcher holds it for itself.
-- name: lock_out_others
SELECT pg_advisory_lock(5512840016374)

-- name: begin
BEGIN

-- name: commit
COMMIT

-- name: upsert_job
INSERT INTO jobs (
    key, device, id, status, priority, received_at_ms, finished_at_ms, attempt, worker, dead, told,
    trouble, state, submit, kept, result
)
SELECT * FROM unnest(
    %b::text[], %b::text[], %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::bigint[],
    %b::bigint[], %b::text[], %b::boolean[], %b::boolean[], %b::boolean[], %b::bytea[], %b::bytea[],
    %b::bytea[], %b::bytea[]
)
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
    result = excluded.result

-- Between two open states: no column that an index covers, no text.
-- name: step
UPDATE jobs AS j
SET status = n.status, attempt = n.attempt, worker = n.worker, state = n.state
FROM unnest(%b::text[], %b::text[], %b::bigint[], %b::text[], %b::bytea[])
    AS n (key, status, attempt, worker, state)
WHERE j.key = n.key

-- name: change
UPDATE jobs AS j
SET finished_at_ms = n.finished_at_ms, status = n.status, attempt = n.attempt, worker = n.worker,
    dead = n.dead, told = n.told, trouble = n.trouble, state = n.state, kept = n.kept,
    result = n.result
FROM unnest(
    %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::text[], %b::boolean[], %b::boolean[],
    %b::boolean[], %b::bytea[], %b::bytea[], %b::bytea[]
) AS n (key, status, finished_at_ms, attempt, worker, dead, told, trouble, state, kept, result)
WHERE j.key = n.key

-- name: tell
UPDATE jobs SET told = true WHERE key = ANY (%b::text[])

-- name: find
SELECT j.key, j.device, j.id, j.status, j.received_at_ms, j.finished_at_ms, j.attempt, j.worker,
    j.dead, j.told, j.state, j.submit, j.kept, j.result
FROM unnest(%b::text[], %b::text[]) AS n (device, id)
JOIN jobs j ON j.device = n.device AND j.id = n.id

-- The filters are appended, then the order: see `PostgresJobStore`.
-- name: select
SELECT j.key, j.device, j.id, j.status, j.received_at_ms, j.finished_at_ms, j.attempt, j.worker,
    j.dead, j.told, j.state, j.submit, j.kept, j.result
FROM jobs j WHERE true

-- What is looked at of a job that no column tells of; the same conditions and orders follow.
-- name: select_traits
SELECT j.key, j.device, j.id, j.status, j.worker, j.result
FROM jobs j WHERE true

-- name: where_key
AND j.key = %s

-- name: where_device
AND j.device = %s

-- name: where_dead
AND j.dead AND j.trouble

-- name: where_untold
AND NOT j.told

-- name: where_status
AND j.status = %s

-- name: where_trouble
AND j.trouble

-- name: where_before
AND j.key < %s

-- name: where_after
AND j.key > %s

-- name: where_keys
AND j.key = ANY (%s)

-- name: newest
ORDER BY j.key DESC LIMIT %s

-- name: oldest_first
ORDER BY j.key LIMIT %s

-- name: oldest
ORDER BY j.key

-- name: recent_questions
SELECT device, submit, key FROM jobs ORDER BY key DESC LIMIT %s

-- What another dispatcher prunes or commits at this moment is left to it.
-- name: prune
DELETE FROM jobs WHERE key IN (
    SELECT key FROM jobs WHERE told AND dead = %s AND finished_at_ms < %s
    ORDER BY finished_at_ms LIMIT %s FOR UPDATE SKIP LOCKED
)

-- name: purge
DELETE FROM jobs WHERE key = %s AND dead AND told

-- What the cloud cost, by UTC day and purpose. It outlives the jobs: they are forgotten in time.
-- name: spending_table
CREATE TABLE spending (
    day bigint NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    reason text COLLATE "C" NOT NULL,
    provider text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    calls bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_usd double precision NOT NULL,
    PRIMARY KEY (day, tenant, reason, provider, model)
)

-- name: spending_keys
ALTER TABLE spending
    ADD COLUMN key text COLLATE "C" NOT NULL DEFAULT '',
    DROP CONSTRAINT spending_pkey,
    ADD PRIMARY KEY (day, tenant, reason, provider, model, key)

-- name: add_spends
INSERT INTO spending AS s (
    day, tenant, reason, provider, model, key, calls, prompt_tokens, cached_tokens,
    completion_tokens, cost_usd
)
SELECT * FROM unnest(
    %b::bigint[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::bigint[],
    %b::bigint[], %b::bigint[], %b::bigint[], %b::double precision[]
)
ON CONFLICT (day, tenant, reason, provider, model, key) DO UPDATE SET
    calls = s.calls + excluded.calls,
    prompt_tokens = s.prompt_tokens + excluded.prompt_tokens,
    cached_tokens = s.cached_tokens + excluded.cached_tokens,
    completion_tokens = s.completion_tokens + excluded.completion_tokens,
    cost_usd = s.cost_usd + excluded.cost_usd

-- name: spends
SELECT day, tenant, reason, provider, model, key, calls, prompt_tokens, cached_tokens,
    completion_tokens, cost_usd
FROM spending WHERE day >= %s ORDER BY day, tenant, reason, provider, model, key

-- Answers for equal questions, by the hash of the question; no prompt is in it. It outlives the
-- jobs that were answered, and is bounded on its own.
-- name: cache_table
CREATE TABLE cache (
    key bytea PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    answer bytea NOT NULL,
    size_bytes bigint NOT NULL,
    until_at_ms bigint NOT NULL,
    used_at_ms bigint NOT NULL,
    hits bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 90)

-- name: cache_keep
INSERT INTO cache (key, tenant, answer, size_bytes, until_at_ms, used_at_ms)
SELECT * FROM unnest(
    %b::bytea[], %b::text[], %b::bytea[], %b::bigint[], %b::bigint[], %b::bigint[]
)
ON CONFLICT (key) DO UPDATE SET
    answer = excluded.answer,
    size_bytes = excluded.size_bytes,
    until_at_ms = excluded.until_at_ms,
    used_at_ms = excluded.used_at_ms

-- name: cache_use
UPDATE cache AS c SET used_at_ms = n.used_at_ms, hits = c.hits + n.hits
FROM unnest(%b::bytea[], %b::bigint[], %b::bigint[]) AS n (key, used_at_ms, hits)
WHERE c.key = n.key

-- Down to the second figure, if there is more than the first; what others use right now stays.
-- name: cache_make_room
DELETE FROM cache WHERE key IN (
    SELECT c.key FROM cache c WHERE c.key IN (
        SELECT key FROM (
            SELECT key,
                sum(size_bytes) OVER () AS all_bytes,
                sum(size_bytes) OVER (ORDER BY used_at_ms DESC, key) AS newer_bytes
            FROM cache
        ) AS aged
        WHERE all_bytes > %s AND newer_bytes > %s
    )
    FOR UPDATE SKIP LOCKED
)

-- name: cache_bytes
SELECT coalesce(sum(size_bytes), 0)::bigint FROM cache

-- name: cache_find
SELECT key, answer FROM cache WHERE key = ANY (%b::bytea[])

-- name: cache_sweep
DELETE FROM cache WHERE until_at_ms <= %s

-- name: cache_clear
DELETE FROM cache

-- name: cache_usage
SELECT tenant, count(*), sum(size_bytes)::bigint, sum(hits)::bigint
FROM cache GROUP BY tenant ORDER BY tenant
