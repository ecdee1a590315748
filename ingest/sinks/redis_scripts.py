"""What runs inside Redis: of several writers, and of writes that come late, the newest counts.

A script is atomic, so that what it compares with is what it replaces. Texts that are the same are
values that are the same: writers send what `repr` and orjson make of a float. Nothing is read from
the clock of a writer's host: ids of stream entries, and how late a call is, are of Redis's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha1

from ingest.sinks.views import CHANNEL_COLUMNS
from marketdata import keys
from marketdata.schema import STATES, Channel

CHANNELS = tuple(CHANNEL_COLUMNS)
"""In the order in which a call of `LAST` has them."""

LATE_MS = 10_000
"""A call that Redis executes later than this after its writer was there has been given up: what a
Redis that hung finds in its sockets is not news."""


@dataclass(frozen=True)
class Script:
    """A Lua text under the name that Redis gives it."""

    text: str

    @cached_property
    def sha(self) -> str:
        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_NOW = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
"""


def _table(names: Iterable[str]) -> str:
    return "{" + ", ".join(f"'{name}'" for name in names) + "}"


_PRICED: tuple[Channel, ...] = ("mark_price", "last_price")
# The time of an event stands behind its values.
_PRICES = [name for c in _PRICED for name in (*CHANNEL_COLUMNS[c][1:], CHANNEL_COLUMNS[c][0])]

LAST = Script(
    f"local channels = {{{', '.join(map(_table, CHANNEL_COLUMNS.values()))}}}\n"
    f"local event_columns = {_table(columns[0] for columns in CHANNEL_COLUMNS.values())}\n"
    f"local price_columns = {_table(_PRICES)}\n"
    f"local price_channels = {{{', '.join(str(CHANNELS.index(c) + 1) for c in _PRICED)}}}\n"
    f"local late_ms, stream_ms = {LATE_MS}, {keys.STREAM_KEPT_MS}\n"
    + _NOW
    + """
local hash, stream = KEYS[1], KEYS[2]
local call = cjson.decode(ARGV[1])
if call.seen_ms > 0 and now_ms - call.seen_ms > late_ms then
    return redis.error_reply('LATE by ' .. (now_ms - call.seen_ms) .. ' ms')
end

local known = redis.call('HMGET', hash, 'received_ms', 'seq', unpack(event_columns))
-- Of one event's time the statement that came later counts: two trades may share a millisecond.
local came_later = call.received_ms >= tonumber(known[1] or 0)

local function differs(columns, values)
    for n, known_value in ipairs(redis.call('HMGET', hash, unpack(columns))) do
        if (known_value or '') ~= values[n] then return true end
    end
    return false
end

local newest_ms = 0
for c = 1, #channels do newest_ms = math.max(newest_ms, tonumber(call.values[c][1]) or 0) end
local replaced, put, gone, is_empty = {}, {}, {}, true
for c, columns in ipairs(channels) do
    local values = call.values[c]
    local event_ms, known_ms = tonumber(values[1]), tonumber(known[2 + c])
    local is_news = false
    if event_ms then
        is_empty = false
        if not known_ms or event_ms > known_ms then
            is_news = true
        elseif event_ms == known_ms then
            is_news = call.has_changed[c] and came_later and differs(columns, values)
        end
    elseif known_ms then
        is_news = known_ms <= call.retracted_ms[c] or known_ms < newest_ms - call.kept_ms
        is_empty = is_empty and is_news
    end
    replaced[c] = is_news
    for n, column in ipairs(is_news and columns or {}) do
        if (values[n] or '') ~= '' then
            put[#put + 1], put[#put + 2] = column, values[n]
        elseif known_ms then
            gone[#gone + 1] = column
        end
    end
end
if is_empty then
    redis.call('DEL', hash)
elseif #put > 0 then
    local seq = math.max(call.seq, tonumber(known[2] or 0) + 1)
    redis.call('HSET', hash, 'received_ms', call.received_ms, 'seq', seq, unpack(put))
    redis.call('PEXPIRE', hash, call.ttl_ms)
end
if #gone > 0 then redis.call('HDEL', hash, unpack(gone)) end

if call.is_announced and (replaced[price_channels[1]] or replaced[price_channels[2]]) then
    local entry = {'exchange', call.exchange, 'symbol', call.symbol}
    for n, value in ipairs(redis.call('HMGET', hash, unpack(price_columns))) do
        if value then entry[#entry + 1], entry[#entry + 2] = price_columns[n], value end
    end
    if #entry > 4 then
        redis.call('XADD', stream, 'MINID', '~', now_ms - stream_ms, '*', unpack(entry))
    end
end

for n, view in ipairs(call.views) do
    local key = KEYS[2 + n]
    local shown_ms = tonumber(redis.call('HGET', key, view.time_field))
    if not shown_ms or view.event_ms > shown_ms
            or (view.event_ms == shown_ms and replaced[view.channel]) then
        redis.call('DEL', key)
        redis.call('HSET', key, unpack(view.fields))
        redis.call('PEXPIRE', key, view.ttl_ms)
    end
end
"""
)
"""The newest values of one pair. KEYS: hash, stream of prices, views; ARGV: JSON.

Channel by channel a newer event replaces what is there; a channel that the writer doesn't have
stays, unless it takes back what it had, or nobody has renewed it for the hash's lifetime.
"""

CANDLES = Script(
    f"local ttl_ms, stream_ms = {keys.CANDLES_TTL_MS}, {keys.STREAM_KEPT_MS}\n"
    + _NOW
    + """
local candles, stream = KEYS[1], KEYS[2]
local exchange, symbol, is_announced = ARGV[1], ARGV[2], ARGV[3] == '1'
local kept = tonumber(ARGV[4])
local rank = {stream = 1, rest = 2, synthetic = 3}

local function parts(data)
    local values, source, revision = string.match(data, '^(.*),"(%a+)",(%d+)%]$')
    return values, source, tonumber(revision or -1)
end

local has_changed = false
for n = 5, #ARGV do
    local data = ARGV[n]
    local open_ms = string.match(data, '^%[(%d+),')
    local known = redis.call('ZRANGEBYSCORE', candles, open_ms, open_ms)[1]
    local is_news = true
    if known then
        local values, source, revision = parts(data)
        local known_values, known_source, known_revision = parts(known)
        if values == known_values then
            -- Nothing to announce; what is known of it gets no worse.
            is_news = false
            if (rank[known_source] or 9) < (rank[source] or 9) then source = known_source end
            data = values .. ',"' .. source .. '",' .. math.max(revision, known_revision) .. ']'
        elseif revision < known_revision or (revision == known_revision and not is_announced) then
            data = known
        end
    end
    if data ~= known then
        has_changed = true
        redis.call('ZADD', candles, open_ms, data)
        if known then redis.call('ZREM', candles, known) end
        redis.call('ZREMRANGEBYRANK', candles, 0, -kept - 1)
        if is_announced and is_news and redis.call('ZSCORE', candles, data) then
            redis.call('XADD', stream, 'MINID', '~', now_ms - stream_ms, '*',
                'exchange', exchange, 'symbol', symbol, 'data', data)
        end
    end
end
if has_changed then redis.call('PEXPIRE', candles, ttl_ms) end
"""
)
"""Closed candles of one pair. KEYS: sorted set, stream; ARGV: exchange, pair, whether they are
announced, how many are kept, then the members.

A candle is announced when its values are new, whoever sends it.
"""

MARKERS = Script(
    f"local ttl_ms, stream_ms = {keys.WRITER_TTL_MS}, {keys.STREAM_KEPT_MS}\n"
    + _NOW
    + """
local writer, stream = KEYS[1], KEYS[2]
local told = tonumber(redis.call('HGET', writer, 'markers') or 0)
for n = 1, #ARGV, 2 do
    local number = tonumber(ARGV[n])
    if number > told then
        redis.call('XADD', stream, 'MINID', '~', now_ms - stream_ms, '*',
            unpack(cjson.decode(ARGV[n + 1])))
        told = number
    end
end
redis.call('HSET', writer, 'markers', told)
redis.call('PEXPIRE', writer, ttl_ms)
"""
)
"""Entries of health. KEYS: the writer's memory, stream; ARGV: of each its number and its JSON."""

_RANKS = ", ".join(f"{state} = {rank}" for rank, state in enumerate(STATES))

HEALTH = Script(
    f"local rank = {{{_RANKS}}}\n"
    f"local ttl_ms, held_ms = {keys.HEALTH_TTL_MS}, {keys.HEALTH_HELD_MS}"
    + """
local hash, speaker = KEYS[1], KEYS[2]
local writer, state, time_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('PTTL', hash) > ttl_ms - held_ms then
    local held_by = redis.call('GET', speaker)
    local known = redis.call('HMGET', hash, 'state', 'time_ms')
    if held_by == writer then
        if time_ms < tonumber(known[2] or 0) then return end
    elseif held_by and (rank[state] or 9) >= (rank[known[1]] or 9) then
        return
    end
end
redis.call('DEL', hash)
redis.call('HSET', hash, unpack(cjson.decode(ARGV[4])))
redis.call('PEXPIRE', hash, ttl_ms)
redis.call('SET', speaker, writer, 'PX', ttl_ms)
"""
)
"""States of an exchange. KEYS: hash, speaker; ARGV: collector, state, time, fields as JSON."""
