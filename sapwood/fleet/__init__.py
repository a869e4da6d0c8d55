"""A fleet: servers of several models on many machines, behind one router.

Ray places servers, restarts them and says how many there are (`rays.py`, the only file that knows it beside `ray_router.py`); what is decided
is here and knows nothing of Ray: what was asked for (`plan.py`), who is where (`register.py`), how many are needed (`scaling.py`), and a
server as a process (`hosted.py`, `leash.py`). Requests never pass through Ray: the router sends them to servers itself.
"""
