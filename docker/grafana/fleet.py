"""The dashboard *Fleet*: whether the replicas are alive and alike, and what they share."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as schema
from panels import (
    BYTES,
    CLASSIFIES,
    CONFIDENCE,
    CORES,
    COUNT,
    FAILURES_PER_SECOND,
    IMAGES_PER_SECOND,
    KEYS_PER_SECOND,
    LOOK_UPS_PER_SECOND,
    NONE_IS_GOOD,
    OURS,
    REPLICA,
    REQUESTS_PER_SECOND,
    SECONDS,
    SHARE,
    SOME_IS_GOOD,
    Panel,
    dashboard,
    lines,
    number,
)

UP = {0: "down", 1: "up"}
TAKEN = {0: "used", 1: "ignored"}

# Fewer than for half of the last hour (as the alert LowfirstReplicaGone counts), else those that cannot be scraped.
LOST = (
    '(quantile_over_time(0.5, count(up{job="lowfirst", scaled_by=""} == 1)[1h:1m]) '
    '- (count(up{job="lowfirst", scaled_by=""} == 1) or vector(0)) > 0) '
    'or (count(up{job="lowfirst"} == 0) or vector(0))'
)


def fleet() -> schema.Dashboard:
    """All of it."""
    replicas: list[Panel] = [
        number(
            "Replicas",
            "How many of all replicas can be scraped?",
            ('count(up{job="lowfirst"} == 1) or vector(0)', "up"),
            unit=COUNT,
            colours=SOME_IS_GOOD,
            missing="none",
        ),
        number(
            "Replicas lost",
            "How many of all replicas cannot be scraped, or disappeared within the last hour?",
            (LOST, "lost"),
            unit=COUNT,
            colours=NONE_IS_GOOD,
            missing="unknown",
        ),
        number(
            "Config version skew",
            "Do all replicas use the same config? It differs for about a second after a change.",
            ("max(lowfirst_config_version) - min(lowfirst_config_version)", "versions apart"),
            unit=COUNT,
            colours=NONE_IS_GOOD,
            missing="no replica",
        ),
        number(
            "Store",
            "Does each replica reach Redis? Always up without LOWFIRST_REDIS_URL.",
            (f"lowfirst_store_up{{{REPLICA}}}", "{{instance}}"),
            unit=COUNT,
            colours=SOME_IS_GOOD,
            missing="no replica",
            words=UP,
        ),
    ]
    config: list[Panel] = [
        lines(
            "Config version by replica",
            "Which replica lags behind?",
            (f"lowfirst_config_version{{{REPLICA}}}", "{{instance}}"),
            unit=COUNT,
            steps=True,
        ),
        lines(
            "Threshold in force by replica",
            "Which replica has lowered its threshold because of overload?",
            (f"lowfirst_effective_threshold{{{REPLICA}}}", "{{instance}} {{model}}"),
            unit=CONFIDENCE,
            steps=True,
            most=1,
        ),
    ]
    store: list[Panel] = [
        lines(
            "Store by replica",
            "When could a replica not reach Redis?",
            (f"lowfirst_store_up{{{REPLICA}}}", "{{instance}}"),
            unit=COUNT,
            steps=True,
            most=1,
            words=UP,
        ),
        lines(
            "Shared config ignored by replica",
            "Which replica ignores the config in Redis, because a newer release wrote it or a value is out of bounds?",
            (f"lowfirst_config_invalid{{{REPLICA}}}", "{{instance}}"),
            unit=COUNT,
            steps=True,
            most=1,
            words=TAKEN,
        ),
    ]
    work: list[Panel] = [
        lines(
            "Images by replica",
            "Is the load spread evenly?",
            (f"sum by (instance) (rate(lowfirst_images_total{{{REPLICA}}}[$__rate_interval]))", "{{instance}}"),
            unit=IMAGES_PER_SECOND,
        ),
        lines(
            "Early-exit rate by replica",
            "Does the rate of one replica differ? Then it has another threshold, or gets other images.",
            (
                f"sum by (instance) (rate(lowfirst_images_total{{{REPLICA}}}[$__rate_interval]) "
                f'unless on (model, exit) lowfirst_images_total{{reason=~"escalated|only", {REPLICA}}}) '
                f"/ sum by (instance) (rate(lowfirst_images_total{{{REPLICA}}}[$__rate_interval]))",
                "{{instance}}",
            ),
            unit=SHARE,
            most=1,
        ),
        lines(
            "p95 by replica",
            "Which replica is slow?",
            (
                "histogram_quantile(0.95, sum by (instance, le) "
                f"(rate(lowfirst_request_seconds_bucket{{{CLASSIFIES}, {REPLICA}}}[$__rate_interval])))",
                "{{instance}}",
            ),
            unit=SECONDS,
        ),
        lines(
            "Errors by replica",
            "Which replica fails? Requests answered with 500 or above (504 excluded), and images, alone or in a batch.",
            (
                f'sum by (instance) (rate(lowfirst_requests_total{{{CLASSIFIES}, code=~"5..", code!="504", {REPLICA}}}'
                "[$__rate_interval]))",
                "{{instance}} requests",
            ),
            (
                f"sum by (instance) (rate(lowfirst_image_errors_total{{{OURS}, {REPLICA}}}[$__rate_interval]))",
                "{{instance}} images",
            ),
            unit=FAILURES_PER_SECOND,
        ),
    ]
    cache: list[Panel] = [
        lines(
            "Cache look-ups",
            "How many cache look-ups are there, and how many hit? None while the cache is off.",
            (f"sum by (result) (rate(lowfirst_cache_requests_total{{{REPLICA}}}[$__rate_interval]))", "{{result}}"),
            unit=LOOK_UPS_PER_SECOND,
            stacked=True,
        ),
        lines(
            "Cache hit rate by replica",
            "What share of the look-ups needs no compute?",
            (
                f'sum by (instance) (rate(lowfirst_cache_requests_total{{result="hit", {REPLICA}}}[$__rate_interval])) '
                f"/ sum by (instance) (rate(lowfirst_cache_requests_total{{{REPLICA}}}[$__rate_interval]))",
                "{{instance}}",
            ),
            unit=SHARE,
            most=1,
        ),
    ]
    machine: list[Panel] = [
        lines(
            "Cores in use by replica",
            "Is the machine the limit?",
            (f'rate(process_cpu_seconds_total{{job="lowfirst", {REPLICA}}}[$__rate_interval])', "{{instance}}"),
            unit=CORES,
        ),
        lines(
            "Memory by replica",
            "Does the memory of a replica keep growing?",
            (f'process_resident_memory_bytes{{job="lowfirst", {REPLICA}}}', "{{instance}}"),
            unit=BYTES,
        ),
    ]
    redis: list[Panel] = [
        lines(
            "Redis memory",
            "How much of its memory limit does Redis use? At the limit it evicts cached results, never the "
            "config. Shared by all replicas.",
            ("redis_memory_used_bytes", "used"),
            ("redis_memory_max_bytes", "limit"),
            unit=BYTES,
        ),
        lines(
            "Redis keys removed",
            "How many cached results expire, and how many are evicted because the memory is full? Shared by all "
            "replicas.",
            ("rate(redis_expired_keys_total[$__rate_interval])", "expired"),
            ("rate(redis_evicted_keys_total[$__rate_interval])", "evicted"),
            unit=KEYS_PER_SECOND,
        ),
        lines(
            "Proxy requests",
            "How many requests does nginx get, for all replicas together?",
            ("rate(nginx_http_requests_total[$__rate_interval])", "requests"),
            unit=REQUESTS_PER_SECOND,
        ),
        lines(
            "Proxy connections",
            "How many connections do clients keep open at nginx, and how many are idle? For all replicas together.",
            ("nginx_connections_active", "open"),
            ("nginx_connections_waiting", "idle"),
            unit=COUNT,
        ),
    ]
    return dashboard(
        "lowfirst-fleet",
        "lowfirst: Fleet",
        "Whether the replicas are alive and alike, and what they share.",
        {
            "Replicas": replicas,
            "Config": config,
            "Store": store,
            "Load": work,
            "Cache": cache,
            "Processor and memory": machine,
            "Redis and proxy": redis,
        },
    )
