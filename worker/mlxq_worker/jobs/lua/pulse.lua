--- @include "common"
-- What the workers of a queue know together of when Redis took their beats: who has died can only be told from those who
-- could not beat by what others did meanwhile. After a while without a beat of anybody, Redis was probably away or took
-- no writes, and those who live get time to beat again before anybody takes their jobs. Whoever looks may have been idle,
-- or not there at all, and know nothing of it.

local function pulse_key(queue) return 'mlxq:pulse:' .. queue end
local function excused_key(queue) return 'mlxq:excused:' .. queue end
local EXCUSED_TTL_S = 24 * 3600

-- What keeps a worker from beating. A full Redis takes beats, and one that loads its data has just started, which may
-- have been the fault of a job: these are not among them.
local REFUSES_BEATS = {BUSY = true, MASTERDOWN = true, MISCONF = true, NOREPLICAS = true, READONLY = true}

-- How often Redis has answered with one of these since it started; 0 where it doesn't say.
local function num_refusals()
  local stats, total = redis.pcall('INFO', 'errorstats'), 0
  if type(stats) ~= 'string' then return 0 end
  for code, number in string.gmatch(stats, 'errorstat_(%u+):count=(%d+)') do
    if REFUSES_BEATS[code] then total = total + tonumber(number) end
  end
  return total
end

-- If Redis has refused beats since this was last looked at, all that is leased is excused until its worker beats again:
-- one that doesn't may have been stopped in peace, and couldn't say so.
local function excuse_the_silent(queue)
  local key, number = pulse_key(queue), num_refusals()
  make_room('hash', key)
  local known = tonumber(redis.call('HGET', key, 'refusals') or '')
  if known == number then return end
  redis.call('HSET', key, 'refusals', number)
  if not known or number < known then return end
  make_room('zset', wip_key(queue))
  make_room('zset', excused_key(queue))
  local last = string.format('(%.0f', ABANDONED)
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', wip_key(queue), '-inf', last)) do
    redis.call('ZADD', excused_key(queue), string.format('%.6f', lease_now()), entry)
  end
  redis.call('EXPIRE', excused_key(queue), EXCUSED_TTL_S)
end

-- Returns whether it was excused; from now on it isn't.
local function end_excuse(queue, job, execution)
  if type_of(excused_key(queue)) ~= 'zset' then return false end
  return redis.call('ZREM', excused_key(queue), job .. ':' .. execution) == 1
end

-- A beat has come. p.quiet_s is how long there may be none without any meaning; p.come_back_s the most that is waited for.
local function note_beat(queue)
  local key, now = pulse_key(queue), lease_now()
  excuse_the_silent(queue)
  local last = tonumber(redis.call('HGET', key, 'beat') or now) or now
  local quiet = math.abs(now - last) -- a clock that was set back is one more thing after which nothing is sure
  if quiet > p.quiet_s then
    local wait = math.min(p.come_back_s, 2 * quiet + 2)
    redis.call('HSET', key, 'trusted_from', string.format('%.6f', now + wait))
  end
  redis.call('HSET', key, 'beat', string.format('%.6f', now))
  redis.call('EXPIRE', key, 7 * 24 * 3600)
end

-- Whether a lease that has run out tells of a death.
local function is_silence_telling(queue)
  local key, now = pulse_key(queue), lease_now()
  local trusted_from = is_a('hash', key) and tonumber(redis.call('HGET', key, 'trusted_from') or 0) or 0
  return now >= trusted_from or trusted_from - now > p.come_back_s -- the latter by a clock that was set back
end
