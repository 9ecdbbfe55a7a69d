"""``fewstep serve``: a page and an HTTP API of models, on this machine alone unless told otherwise.

``limits`` says what one request may cost, ``served`` opens the models, ``forms`` describes them,
``bodies`` are the requests, ``verbs`` compute the answers in the one thread of ``worker``, ``gate``
refuses what may not come in, ``app`` joins these to an ASGI application, and ``server`` runs it.
"""
