"""What was found out about results of `methods.py` that lie where nobody would expect them."""

NOTES: dict[str, dict[str, str]] = {
    "frappe": {
        "ada_embed": "ids without a row of their own have none; with so few rows validation AUC "
        "wavers as they change hands, which ended training in the fourth or fifth epoch.",
        "cafe_plus": "validation AUC wavered after the third epoch, which ended training there, "
        "where CAFE rose for 20.",
        "adapt_emb": "at 0.1 the remap of ids to rows takes 21,088 of 34,464 bytes, which "
        "leaves few rows.",
        "deep_light": "at 0.05 indices take 4,686 of 17,242 bytes, which leaves 3.6 % of the "
        "values; seeds differ by 0.03.",
        "pep": "at 0.05 indices take 4,806 of 17,242 bytes, which leaves 3.6 % of the "
        "values; seeds differ by 0.05.",
        "dhe": "its networks train at a learning rate chosen for full tables, which at 0.1 is "
        "too high: validation AUC fell from 0.909 to 0.627 in two epochs. At 0.25 it was 0.9439 "
        "against 0.9448 on validation, one seed each.",
        "min_count": "at 0.1 the remap of ids to rows takes 21,088 of 34,464 bytes, which "
        "leaves few rows; all other ids share one.",
    },
    "synthetic": {
        "deep_light": "its published schedule prunes after two epochs of warm-up, and here full "
        "tables are best after one (validation AUC 0.8057, then 0.8013, and still falling while it "
        "prunes). deep_light_short prunes in the second epoch; it was chosen on validation.",
        "deep_light_short": "the difference is within the spread over seeds.",
        "pep": "training from the initial weights under so sparse a mask is best after one epoch, "
        "at 0.7858 on validation.",
        "shaver": "it trains on with what is left, where full tables are best after one epoch: "
        "0.8057 on validation, then 0.7958 at 0.25, and with fewer columns less.",
        "dhe": "all vectors come from a few small networks, and three epochs do not train them: "
        "validation AUC still rose from the second to the third.",
        "hash_embeddings": "importances take a part of the bytes, and with rows for half of the "
        "ids, sums of two shared rows tell no more ids apart; validation AUC differs by 0.0002.",
        "matryoshka": "it serves whole columns, here one of 16, so that it has two thirds of the "
        "bytes; hash is lower at half of the bytes.",
        "mem_com": "a sixteenth of the full bytes holds the scalars, which leaves fewer rows than "
        "hash has, and a scalar tells ids apart by length alone.",
    },
}
"""Why a method lies below `hash` at the same budget, by study and method."""
