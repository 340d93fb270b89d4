"""The machine's figures for a heartbeat, read with psutil; what cannot be read is null."""

import os
import socket
import time
from pathlib import Path

import psutil
import structlog

from agent.protocol import NodeStatus

log = structlog.get_logger(__name__)


def read_node_status(state_dir: Path) -> NodeStatus:
    """Read the machine's figures; never raises. Blocking, some ten file reads.

    Args:
        state_dir: Whose file system is the disk that is meant.
    """
    hostname = socket.gethostname()
    try:
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(state_dir))
        return NodeStatus(
            hostname=hostname,
            cpu_count=os.cpu_count(),
            cpu_percent=psutil.cpu_percent(interval=None),
            memory_total_bytes=memory.total,
            memory_used_bytes=memory.total - memory.available,
            disk_total_bytes=disk.total,
            disk_used_bytes=disk.used,
            load=[round(value, 2) for value in os.getloadavg()],
            uptime_seconds=round(time.time() - psutil.boot_time(), 1),
        )
    except (OSError, psutil.Error) as error:
        log.warning("machine.unreadable", error=str(error))
        return NodeStatus(hostname=hostname)
