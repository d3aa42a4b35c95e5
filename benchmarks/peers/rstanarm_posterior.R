# rstanarm's side of the posterior benchmarks: stan_glmer with its own (non-centred) parametrisation.
suppressPackageStartupMessages(library(rstanarm))
arguments <- commandArgs(trailingOnly = TRUE)
target <- jsonlite::fromJSON(arguments[1])
data <- data.frame(y = target$y, target$columns, lapply(target$groups, factor))
prior <- target$prior
stopifnot(prior$sd_family == "exponential", is.null(prior$sigma))
start <- proc.time()[["elapsed"]]
fit <- stan_glmer(as.formula(target$formula), data,
  family = target$family,
  prior = normal(0, prior$slope, autoscale = FALSE),
  prior_intercept = normal(0, prior$intercept, autoscale = FALSE),
  # one effect a group: its SD is Gamma(shape, scale)
  prior_covariance = decov(shape = 1, scale = prior$sd),
  chains = target$chains, cores = target$cores, iter = target$tune + target$draws, warmup = target$tune,
  seed = target$seed, refresh = 0
)
seconds <- proc.time()[["elapsed"]] - start
draws <- as.array(fit) # iteration, chain, parameter
named <- lapply(setNames(target$names, target$names), function(name) {
  if (name == "Intercept") return(t(draws[, , "(Intercept)"]))
  if (!endsWith(name, ".sd")) return(t(draws[, , name]))
  group <- sub(".sd$", "", name)
  sqrt(t(draws[, , sprintf("Sigma[%s:(Intercept),(Intercept)]", group)]))
})
result <- list(version = paste("rstanarm", packageVersion("rstanarm")), draws = named, seconds = seconds, compile = 0)
cat("RESULT ", jsonlite::toJSON(result, auto_unbox = TRUE, digits = 10), "\n", sep = "")
