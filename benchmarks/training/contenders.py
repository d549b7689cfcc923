"""Who is compared: the peers, and recemb in its settings."""

from session import Contender

REFERENCE = Contender(
    name="recemb fp32",
    environment=None,
    module="recemb",
    options={"overrides": ["trainer.compile=false", "trainer.precision=fp32"]},
)

CONTENDERS = (
    REFERENCE,
    Contender(
        name="recemb fp32 compiled",
        environment=None,
        module="recemb",
        options={"overrides": ["trainer.compile=true", "trainer.precision=fp32"]},
    ),
    Contender(
        name="recemb bf16 compiled",
        environment=None,
        module="recemb",
        options={"overrides": ["trainer.compile=true", "trainer.precision=bf16"]},
        needs_bf16=True,
    ),
    Contender(
        name="FBGEMM table",
        environment="fbgemm",
        module="fbgemm",
        options={},
        copies=1.4,
    ),
    Contender(
        name="TorchRec fused EBC",
        environment="torchrec",
        module="torchrec",
        options={},
        copies=1.4,
    ),
    Contender(
        name="nn.EmbeddingBag(sparse)",
        environment="torch",
        module="embedding_bag",
        options={},
        copies=2.2,
    ),
    # Weights, gradients and Adam's two moments, and a step's temporaries.
    Contender(name="FuxiCTR", environment="fuxictr", module="fuxictr", options={}, copies=4.4),
    Contender(
        name="DeepCTR-Torch",
        environment="deepctr-torch",
        module="deepctr_torch",
        options={},
        models=("deepfm",),
        copies=4.4,
    ),
)
