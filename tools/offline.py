"""The notebooks run as nbdev_test runs them, and nothing in them leaves this machine: python tools/offline.py [options of nbdev_test]

The tests use the same guard: Python tells an audit hook of each look-up and of each address that something is sent to. It sees this process and those that are forked from it, and not what another program does by itself."""
import ipaddress
import sys

WHERE = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0, "socket.getnameinfo": 0, "socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1} # event: which of its arguments is the address


def here(host: str) -> bool:
    "Is it this machine?"
    if host in ("", "localhost"): return True
    try: address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError: return False # a name, which somebody would have to be asked for
    return address.is_loopback or address.is_unspecified


def stay_here(event: str, args: tuple) -> None:
    "An audit hook: no look-up, no connection and no message that leaves this machine."
    if event not in WHERE: return
    host = args[WHERE[event]]
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getnameinfo"): host = host[0] if isinstance(host, tuple) and host else None # a path: a socket of this machine
    if isinstance(host, (bytes, bytearray)): host = host.decode(errors="replace")
    if isinstance(host, str) and not here(host): raise OSError(f"{host}: the tests use no network")


if __name__ == "__main__":
    sys.addaudithook(stay_here)
    from nbdev.test import nbdev_test
    nbdev_test()
