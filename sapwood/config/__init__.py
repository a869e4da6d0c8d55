"""Every option, declared once; resolved once; read from nowhere else."""

from sapwood.config.options import (
    CacheConfig,
    Config,
    DeviceConfig,
    ModelConfig,
    SchedulerConfig,
    ServerConfig,
)

__all__ = ["CacheConfig", "Config", "DeviceConfig", "ModelConfig", "SchedulerConfig", "ServerConfig"]
