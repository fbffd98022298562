-- Every statement the job store runs. One statement a name.
--
-- `jobs` holds what changes at every step: columns for what people and indexes ask for, `state` for
-- the rest (msgpack). `prompts` holds what the device said and `answers` what was said back: a step
-- of a job never rewrites its texts.
--
-- The usual steps have statements of their own, which touch no column that they need not: an
-- UPDATE pays for every index over a column it names, even if the value stays (measured: a third
-- of the whole cost of a job).

-- name: create_jobs
CREATE TABLE jobs (
    key TEXT PRIMARY KEY,
    device TEXT NOT NULL,
    id TEXT NOT NULL,
    status TEXT NOT NULL,
    priority INTEGER NOT NULL,
    received_at_ms INTEGER NOT NULL,
    finished_at_ms INTEGER,
    attempt INTEGER NOT NULL,
    worker TEXT,
    dead INTEGER NOT NULL,
    told INTEGER NOT NULL,
    trouble INTEGER NOT NULL,
    state BLOB NOT NULL
) WITHOUT ROWID

-- name: create_prompts
CREATE TABLE prompts (
    key TEXT PRIMARY KEY REFERENCES jobs (key) ON DELETE CASCADE,
    submit BLOB NOT NULL
) WITHOUT ROWID

-- name: create_answers
CREATE TABLE answers (
    key TEXT PRIMARY KEY REFERENCES jobs (key) ON DELETE CASCADE,
    kept BLOB,
    result BLOB
) WITHOUT ROWID

-- name: index_device_id
CREATE UNIQUE INDEX jobs_device_id ON jobs (device, id)

-- Open jobs and the outbox: a job without a result was not told either.
-- name: index_untold
CREATE INDEX jobs_untold ON jobs (key) WHERE told = 0

-- Of the first release; what took its place is below.
-- name: index_finished
CREATE INDEX jobs_finished ON jobs (finished_at_ms) WHERE told = 1

-- name: drop_finished
DROP INDEX jobs_finished

-- Dead letters stay longer than other jobs: pruning must not walk over them every time.
-- name: kept_index
CREATE INDEX jobs_kept ON jobs (dead, finished_at_ms) WHERE told = 1

-- The rare outcomes, which people look for; the common ones are found by walking the keys.
-- name: index_trouble
CREATE INDEX jobs_trouble ON jobs (key) WHERE trouble = 1

-- name: upsert_job
INSERT INTO jobs (
    key, device, id, status, priority, received_at_ms, finished_at_ms, attempt, worker, dead, told,
    trouble, state
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
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
    state = excluded.state

-- name: step
UPDATE jobs SET status = ?, attempt = ?, worker = ?, state = ? WHERE key = ?

-- name: finish_ok
UPDATE jobs SET status = ?, attempt = ?, worker = ?, state = ?, finished_at_ms = ? WHERE key = ?

-- name: tell
UPDATE jobs SET told = 1 WHERE key = ?

-- name: insert_prompt
INSERT INTO prompts (key, submit) VALUES (?, ?) ON CONFLICT (key) DO NOTHING

-- name: upsert_answer
INSERT INTO answers (key, kept, result) VALUES (?, ?, ?)
ON CONFLICT (key) DO UPDATE SET kept = excluded.kept, result = excluded.result

-- name: upsert_result
INSERT INTO answers (key, result) VALUES (?, ?)
ON CONFLICT (key) DO UPDATE SET kept = NULL, result = excluded.result

-- name: forget_answer
DELETE FROM answers WHERE key = ?

-- name: find
SELECT j.key, j.device, j.id, j.status, j.received_at_ms, j.finished_at_ms, j.attempt, j.worker,
    j.dead, j.told, j.state, p.submit, a.kept, a.result
FROM jobs j JOIN prompts p ON p.key = j.key LEFT JOIN answers a ON a.key = j.key
WHERE j.device = ? AND j.id = ?

-- name: names
SELECT device, id FROM jobs

-- name: get
SELECT j.key, j.device, j.id, j.status, j.received_at_ms, j.finished_at_ms, j.attempt, j.worker,
    j.dead, j.told, j.state, p.submit, a.kept, a.result
FROM jobs j JOIN prompts p ON p.key = j.key LEFT JOIN answers a ON a.key = j.key
WHERE j.key = ?

-- name: load_open
SELECT j.key, j.device, j.id, j.status, j.received_at_ms, j.finished_at_ms, j.attempt, j.worker,
    j.dead, j.told, j.state, p.submit, a.kept, a.result
FROM jobs j JOIN prompts p ON p.key = j.key LEFT JOIN answers a ON a.key = j.key
WHERE j.told = 0 ORDER BY j.key

-- The filters are appended, then the order: see `SqliteJobStore.select`.
-- name: select
SELECT j.key, j.device, j.id, j.status, j.received_at_ms, j.finished_at_ms, j.attempt, j.worker,
    j.dead, j.told, j.state, p.submit, a.kept, a.result
FROM jobs j JOIN prompts p ON p.key = j.key LEFT JOIN answers a ON a.key = j.key
WHERE 1

-- What is looked at of a job that no column tells of; the same conditions and orders follow.
-- name: select_traits
SELECT j.key, j.device, j.id, j.status, j.worker, a.result
FROM jobs j LEFT JOIN answers a ON a.key = j.key
WHERE 1

-- name: where_device
AND j.device = ?

-- The same of a device with many jobs, met often along the keys: to sort all of them would take seconds.
-- name: where_device_met
AND +j.device = ?

-- name: has_many
SELECT count(*) = ? FROM (SELECT 1 FROM jobs WHERE device = ? LIMIT ?)

-- name: where_dead
AND j.dead = 1 AND j.trouble = 1

-- name: where_untold
AND j.told = 0

-- name: where_status
AND j.status = ?

-- name: where_trouble
AND j.trouble = 1

-- name: where_before
AND j.key < ?

-- name: where_after
AND j.key > ?

-- name: where_keys
AND j.key IN (SELECT value FROM json_each(?))

-- name: newest
ORDER BY j.key DESC LIMIT ?

-- name: oldest_first
ORDER BY j.key LIMIT ?

-- name: recent_questions
SELECT j.device, p.submit, j.key FROM jobs j JOIN prompts p ON p.key = j.key
ORDER BY j.key DESC LIMIT ?

-- name: prune
DELETE FROM jobs WHERE key IN (
    SELECT key FROM jobs WHERE told = 1 AND dead = ? AND finished_at_ms < ?
    ORDER BY finished_at_ms LIMIT ?
)

-- name: purge
DELETE FROM jobs WHERE key = ? AND dead = 1 AND told = 1

-- What the cloud cost, by UTC day and purpose. It outlives the jobs: they are forgotten in time.
-- name: spending_table
CREATE TABLE spending (
    day INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    reason TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    calls INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost_usd REAL NOT NULL,
    PRIMARY KEY (day, tenant, reason, provider, model)
) WITHOUT ROWID

-- The table anew: SQLite changes no primary key. What was spent before had no key on it.
-- name: spending_with_keys_table
CREATE TABLE spending_with_keys (
    day INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    reason TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    key TEXT NOT NULL,
    calls INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cost_usd REAL NOT NULL,
    PRIMARY KEY (day, tenant, reason, provider, model, key)
) WITHOUT ROWID

-- name: spending_copied
INSERT INTO spending_with_keys
SELECT day, tenant, reason, provider, model, '', calls, prompt_tokens, cached_tokens,
    completion_tokens, cost_usd
FROM spending

-- name: spending_dropped
DROP TABLE spending

-- name: spending_renamed
ALTER TABLE spending_with_keys RENAME TO spending

-- name: add_spend
INSERT INTO spending (
    day, tenant, reason, provider, model, key, calls, prompt_tokens, cached_tokens,
    completion_tokens, cost_usd
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (day, tenant, reason, provider, model, key) DO UPDATE SET
    calls = calls + excluded.calls,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cost_usd = cost_usd + excluded.cost_usd

-- name: spends
SELECT day, tenant, reason, provider, model, key, calls, prompt_tokens, cached_tokens,
    completion_tokens, cost_usd
FROM spending WHERE day >= ? ORDER BY day, tenant, reason, provider, model, key

-- Answers for equal questions, by the hash of the question; no prompt is in it. It outlives the
-- jobs that were answered, and is bounded on its own. No index over `used_at_ms`: every answer would
-- pay for it, and the oldest are looked for once in a tenth of the bound.
-- name: cache_table
CREATE TABLE cache (
    key BLOB PRIMARY KEY,
    tenant TEXT NOT NULL,
    answer BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    until_at_ms INTEGER NOT NULL,
    used_at_ms INTEGER NOT NULL,
    hits INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID

-- name: cache_keep
INSERT INTO cache (key, tenant, answer, size_bytes, until_at_ms, used_at_ms)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
    answer = excluded.answer,
    size_bytes = excluded.size_bytes,
    until_at_ms = excluded.until_at_ms,
    used_at_ms = excluded.used_at_ms

-- name: cache_use
UPDATE cache SET used_at_ms = ?, hits = hits + 1 WHERE key = ?

-- name: cache_find
SELECT answer FROM cache WHERE key = ?

-- name: cache_oldest
SELECT key, size_bytes FROM cache ORDER BY used_at_ms

-- name: cache_forget
DELETE FROM cache WHERE key = ?

-- name: cache_bytes
SELECT coalesce(sum(size_bytes), 0) FROM cache

-- name: cache_sweep
DELETE FROM cache WHERE until_at_ms <= ?

-- name: cache_clear
DELETE FROM cache

-- name: cache_usage
SELECT tenant, count(*), sum(size_bytes), sum(hits) FROM cache GROUP BY tenant ORDER BY tenant
