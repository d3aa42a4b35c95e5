from gpboost_timing import bench, design, dummies, frame

d = frame()
columns = [d["Anger"].to_numpy()]
for name in ("Gender", "btype", "situ", "mode"):
    columns += dummies(d[name])
bench(d[["id", "item"]].astype(str).to_numpy(), d["y"].to_numpy(float), design(columns), "bernoulli_logit")
